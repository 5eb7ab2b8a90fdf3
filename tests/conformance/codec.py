"""The codec through transformers' common model tests."""

import unittest
from collections.abc import Callable
from unittest.mock import patch

import torch
from skips import skip_listed
from transformers import AutoModel
from transformers.utils import ModelOutput
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel


class ReasoningCodecModelTester:
    """A tiny codec, and clips of 0.4 s: the shortest that all frame rates divide."""

    batch_size = 3
    num_samples = 9600
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> ReasoningCodecConfig:
        return ReasoningCodecConfig(
            whisper_config={
                "d_model": 16,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "decoder_layers": 1,
                "decoder_attention_heads": 2,
                "decoder_ffn_dim": 16,
                "num_mel_bins": 80,
                "max_source_positions": 50,
            },
            wavlm_config={
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "conv_dim": (16, 16, 16, 16, 16, 16, 16),
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 2,
                "num_buckets": 32,
            },
            music_encoder_config={
                "conv_dim": 2,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "conv_depthwise_kernel_size": 5,
            },
            flow_config={
                "in_channels": 2 * 8 + self.hidden_size,
                "out_channels": 8,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_timestep_channels": 32,
                "max_positions": 100,
            },
            scalar_config={
                "num_samples": 2,
                "downsample_factors": (8, 6, 10),
                "downsample_kernel_sizes": (16, 12, 20),
                "upsample_factors": (10, 6, 8),
                "upsample_kernel_sizes": (20, 12, 16),
                "latent_hidden_dim": 8,
                "init_channel": 2,
            },
            hidden_size=self.hidden_size,
            wavlm_layers=(1, 2),
            music_acoustic_layer=1,
            music_semantic_layer=2,
            reasoning_num_layers=self.num_hidden_layers,
            reasoning_head_dim=32,
            reasoning_intermediate_size=16,
            reasoning_codebook_size=16,
            reasoning_codebook_dim=8,
            reconstruction_codebook_size=16,
            reconstruction_codebook_dim=8,
            encode_mode="exact",
            decode_mode="exact",
            window_seconds=0.8,
            decode_window_seconds=0.8,
            num_flow_steps=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[ReasoningCodecConfig, dict]:
        return self.get_config(), {"input_values": floats_tensor([self.batch_size, 1, self.num_samples], scale=1.0)}


# The common tests find the bare model in the tables of the library.
AutoModel.register(ReasoningCodecConfig, ReasoningCodecModel, exist_ok=True)


@skip_listed("codec")
class ReasoningCodecModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (ReasoningCodecModel,)
    # Front ends, scalar codec and reasoning branch are frozen.
    test_all_params_have_gradient = False
    test_resize_embeddings = False
    _is_composite = True

    def setUp(self):
        self.model_tester = ReasoningCodecModelTester(self)
        # Decoding starts from noise; the common tests call a model twice and compare, so it is the same in each call.
        noise = patch.object(ReasoningCodecModel, "_draw_noise", fixed_noise)
        noise.start()
        self.addCleanup(noise.stop)

    def test_model_outputs_equivalence(self):
        """Overridden because the test subtracts outputs, and masks cannot be subtracted."""
        with patch.object(ReasoningCodecModel, "forward", with_integer_masks(ReasoningCodecModel.forward)):
            super().test_model_outputs_equivalence()


def fixed_noise(codec: ReasoningCodecModel, frames: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(frames, codec.config.latent_dim, generator=torch.Generator().manual_seed(0))


def with_integer_masks(forward: Callable) -> Callable:
    def to_integer(value):
        return value.long() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value

    def wrapped(*args, **kwargs) -> ModelOutput | tuple:
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return tuple(to_integer(value) for value in output)
        return type(output)(**{name: to_integer(value) for name, value in output.items()})

    return wrapped
