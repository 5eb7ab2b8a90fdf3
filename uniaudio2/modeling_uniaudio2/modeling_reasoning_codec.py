"""The ReasoningCodec: audio to reasoning and reconstruction codes, and reconstruction codes to audio."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import nn
from torch.nn.utils import parametrize
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput

from .complete_checkpoint import CompleteCheckpointMixin
from .configuration_reasoning_codec import DECODE_MODES, ENCODE_MODES, ReasoningCodecConfig
from .losses_reasoning_codec import flow_matching_loss, masked_mean_squared_error
from .modeling_codec_front_ends import CodecFrontEnds, ReasoningCodecFeatures
from .modeling_flow_decoder import (
    FlowDecoder1D,
    build_flow_decoder,
    default_flow_scheduler,
    initialize_flow_decoder,
    sample_flow,
)
from .modeling_reasoning_branch import ReasoningBlock, ReasoningBranch, WeightNormLinear
from .modeling_reconstruction_branch import FeatureDecoder, FlowConditioner, ReconstructionBranch
from .modeling_scalar_codec import ScalarCodec
from .windowing_reasoning_codec import DecodingPlan, EncodingPlan, plan_decoding, plan_encoding

# Stands in code tensors where an item of the batch has no more frames.
CODE_PADDING = -1
SCHEDULER_FOLDER = "scheduler"


@dataclass
class ReasoningCodecEncoderOutput(ModelOutput):
    """
    Args:
        reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`):
            Codes that carry the meaning; -1 after an item's last frame.
        reconstruction_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 12.5 Hz)`):
            Phone, structure and acoustic codes; -1 after an item's last frame.
        reasoning_mask (`torch.BoolTensor` of shape `(batch_size, frames at 5 Hz)`): `True` for an item's own frames.
        reconstruction_mask (`torch.BoolTensor` of shape `(batch_size, frames at 12.5 Hz)`): Likewise.
    """

    reasoning_codes: torch.LongTensor | None = None
    reconstruction_codes: torch.LongTensor | None = None
    reasoning_mask: torch.BoolTensor | None = None
    reconstruction_mask: torch.BoolTensor | None = None


@dataclass
class ReasoningCodecDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_samples)`): Waveforms, zero after an item's
        end.
        padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`): `True` for an item's own samples.
    """

    audio_values: torch.FloatTensor | None = None
    padding_mask: torch.BoolTensor | None = None


@dataclass
class ReasoningCodecOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, *optional*): Weighted sum of the losses below; in training.
        flow_loss (`torch.FloatTensor`, *optional*): Error of the flow decoder's velocity.
        phone_feature_loss (`torch.FloatTensor`, *optional*): Error of WavLM features predicted from the phone stream.
        structure_feature_loss (`torch.FloatTensor`, *optional*):
            Error of semantic music features predicted from the structure stream.
        commitment_loss (`torch.FloatTensor`, *optional*): Commitment of the reconstruction quantizers.
        audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_samples)`, *optional*): The input,
        reconstructed.
        padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
            `True` for an item's own samples.
        reasoning_codes, reconstruction_codes (`torch.LongTensor`, *optional*):
            As in [`ReasoningCodecEncoderOutput`].
    """

    loss: torch.FloatTensor | None = None
    flow_loss: torch.FloatTensor | None = None
    phone_feature_loss: torch.FloatTensor | None = None
    structure_feature_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    audio_values: torch.FloatTensor | None = None
    padding_mask: torch.BoolTensor | None = None
    reasoning_codes: torch.LongTensor | None = None
    reconstruction_codes: torch.LongTensor | None = None


class ReasoningCodecPreTrainedModel(CompleteCheckpointMixin, PreTrainedAudioTokenizerBase):
    config: ReasoningCodecConfig
    base_model_prefix = "codec"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = (
        "WhisperEncoderLayer",
        "Wav2Vec2ConformerEncoderLayer",
        "ReasoningBlock",
        "ReconstructionBranch",
        "FlowConditioner",
        "BasicTransformerBlock",
    )
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Distances between nearby codes do not survive half precision.
    _keep_in_fp32_modules_strict = ("_codebook",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation of its layers, and the values of everything that is not one of them.

        This must cover every parameter and buffer, saved or not: `from_pretrained` builds the model without memory.
        """
        if isinstance(module, FlowDecoder1D):
            initialize_flow_decoder(module)
        elif isinstance(module, WeightNormLinear):
            init.kaiming_uniform_(module.weight_direction, a=5**0.5)
            init.copy_(module.weight_magnitude, module.weight_direction.norm(dim=1, keepdim=True))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, parametrize.ParametrizationList):  # weight norm of the scalar codec
            _initialize_weight_norm(module)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, module.init)
        elif isinstance(module, ReasoningBlock):
            # Without normalisation before the blocks, small scales keep a fresh stack close to the identity.
            init.constant_(module.self_attn_scale, 0.1)
            init.constant_(module.feed_forward_scale, 0.1)
        elif isinstance(module, ReasoningBranch):
            init.normal_(module.query_token)
        elif isinstance(module, FlowConditioner):
            init.normal_(module.padding_embedding)
        elif hasattr(module, "embed_avg"):  # a codebook of vector-quantize-pytorch
            init.kaiming_uniform_(module.embed)
            init.copy_(module.embed_avg, module.embed)
            init.ones_(module.cluster_size)
            init.constant_(module.initted, True)
        elif hasattr(module, "beam_score_weights"):  # its residual quantizer
            init.ones_(module.beam_score_weights)
        elif hasattr(module, "commitment_weight"):  # its quantizer
            init.zeros_(module.zero)


class ReasoningCodecModel(ReasoningCodecPreTrainedModel):
    r"""
    The codec: frozen front ends, the reasoning branch, the reconstruction branch, and a flow decoder that paints the
    latents of a scalar autoencoder.

    The solver of the flow is a diffusers scheduler in `codec.scheduler`, saved in the folder `scheduler/` beside the
    weights. Any flow-matching scheduler may take its place, e.g.
    `codec.scheduler = FlowMatchHeunDiscreteScheduler.from_config(codec.scheduler.config)`.

    Args:
        config ([`ReasoningCodecConfig`]): Sizes and windows.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__(config)
        self.front_ends = CodecFrontEnds(config)
        self.reasoning_branch = ReasoningBranch(config)
        self.reconstruction_branch = ReconstructionBranch(config)
        self.flow_conditioner = FlowConditioner(config)
        self.flow_decoder = build_flow_decoder(config.flow_config)
        self.scalar_codec = ScalarCodec(config.scalar_config)
        # 12.5 Hz to WavLM's 50 Hz and to the music encoder's 25 Hz; used in training alone.
        self.phone_feature_decoder = FeatureDecoder(config.hidden_size, config.wavlm_config.hidden_size, (2, 2))
        self.structure_feature_decoder = FeatureDecoder(
            config.hidden_size, config.music_encoder_config.hidden_size, (1, 2)
        )
        self.scheduler = default_flow_scheduler()
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> "ReasoningCodecModel":
        """Sets training mode, but never for the front ends and the scalar codec: their drop-out would make features
        random, and their batch statistics must stay those of their own training."""
        super().train(mode)
        self.front_ends.eval()
        self.scalar_codec.eval()
        return self

    def get_input_embeddings(self) -> None:
        """There are none: it reads audio."""

    def freeze_for_reconstruction_training(self) -> None:
        """Freezes what the reconstruction stage does not train: front ends, scalar codec, reasoning branch."""
        for module in (self.front_ends, self.scalar_codec, self.reasoning_branch):
            module.requires_grad_(False)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As [`~transformers.PreTrainedModel.save_pretrained`]; the scheduler goes to the folder `scheduler/`."""
        self.scheduler.save_pretrained(os.path.join(save_directory, SCHEDULER_FOLDER))
        self.config.auto_map = {
            "AutoModelForAudioTokenization": f"{__name__.rpartition('.')[2]}.{type(self).__name__}"
        }
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`~transformers.PreTrainedModel.from_pretrained`], from a complete checkpoint; the scheduler comes from the
        folder `scheduler/`.

        Raises:
            ValueError: If the checkpoint was saved from this class and lacks some of its weights, if weights have
                other shapes (unless `ignore_mismatched_sizes=True`), or if diffusers does not have its scheduler.
            OSError: If there is no `scheduler/scheduler_config.json`.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if pretrained_model_name_or_path is not None:
            model.scheduler = _load_scheduler(pretrained_model_name_or_path, kwargs)
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Also the positional convolution of WavLM, whose weight transformers initialises where weight norm has
        replaced it by two factors."""
        super().initialize_weights()
        _initialize_weight_norm(self.front_ends.wavlm.encoder.pos_conv_embed.conv.parametrizations.weight)

    @torch.no_grad()
    def encode(
        self,
        input_values: torch.FloatTensor,
        padding_mask: torch.BoolTensor | None = None,
        encode_mode: str | None = None,
        window_seconds: float | None = None,
        reference: bool = False,
        return_dict: bool | None = None,
    ) -> ReasoningCodecEncoderOutput | tuple[torch.Tensor, ...]:
        """
        Audio to codes. Deterministic; each item's codes are those it has alone, whatever shares its batch.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Mono audio at `config.sampling_rate`, of any length. It may stay on the CPU: windows are moved one by
                one.
            padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
                `True` for an item's own samples, which must be contiguous.
            encode_mode (`str`, *optional*, defaults to `config.encode_mode`):
                `"release"`: windows of `window_seconds` over the recording, which is repeated to fill them, and one
                frame more than fits in whole numbers (1 s: 13 and 6): what the released language model was most likely
                trained on. `"exact"`: no repetition; as many frames as cover the recording (1 s: 13 and 5).
            window_seconds (`float`, *optional*, defaults to `config.window_seconds`): Window of encoding.
            reference (`bool`, *optional*, defaults to `False`):
                Whether to cut windows and count frames exactly as the released code does: its windows of the mode
                `"release"` are 10 ms too far apart.
            return_dict (`bool`, *optional*): Whether to return a [`ReasoningCodecEncoderOutput`] or a tuple.

        Returns:
            [`ReasoningCodecEncoderOutput`]

        Raises:
            ValueError: If the audio is empty, not finite, not mono or has another rank, if the mask has another shape
                or holes, or if mode or window are not allowed.
        """
        mode = _one_of("encode_mode", encode_mode or self.config.encode_mode, ENCODE_MODES)
        recordings = _split_recordings(input_values, padding_mask)
        plans = [
            plan_encoding(len(recording), self.config, mode, window_seconds or self.config.window_seconds, reference)
            for recording in recordings
        ]
        reasoning_codes = self._empty_codes([plan.num_reasoning_frames for plan in plans])
        reconstruction_codes = self._empty_codes([plan.num_reconstruction_frames for plan in plans])
        for group in _equal_windows(plans, self.config.window_batch_size):
            windows = torch.stack([_read_window(recordings[item], plans[item], index) for item, index in group])
            reasoning, reconstruction = self._encode_windows(windows.to(self.device))
            for row, (item, index) in enumerate(group):
                # All windows of a recording but the last are as long as the first.
                window, plan = plans[item].lengths[0], plans[item]
                start = index * (window // self.config.reasoning_hop_length)
                _place_codes(reasoning_codes[item], reasoning[row], start, plan.num_reasoning_frames)
                start = index * (window // self.config.reconstruction_hop_length)
                _place_codes(reconstruction_codes[item], reconstruction[row], start, plan.num_reconstruction_frames)
        output = ReasoningCodecEncoderOutput(
            reasoning_codes=reasoning_codes,
            reconstruction_codes=reconstruction_codes,
            reasoning_mask=reasoning_codes[:, 0] != CODE_PADDING,
            reconstruction_mask=reconstruction_codes[:, 0] != CODE_PADDING,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def _empty_codes(self, num_frames: Sequence[int]) -> torch.LongTensor:
        shape = (len(num_frames), self.config.num_codebooks, max(num_frames))
        return torch.full(shape, CODE_PADDING, dtype=torch.long, device=self.device)

    def _encode_windows(self, windows: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """`(num_windows, num_samples)` to both kinds of codes, each `(num_windows, num_codebooks, frames)`."""
        features = self.front_ends(windows)
        reasoning = self.reasoning_branch(features.whisper, features.music_semantic)
        reconstruction = self.reconstruction_branch(
            features.whisper, features.wavlm, features.music_acoustic, features.music_semantic, reasoning.quantized
        )
        return reasoning.codes.transpose(1, 2), reconstruction.codes.transpose(1, 2)

    @torch.no_grad()
    def decode(
        self,
        reconstruction_codes: torch.LongTensor,
        reasoning_codes: torch.LongTensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: torch.FloatTensor | None = None,
        decode_mode: str | None = None,
        window_seconds: float | None = None,
        reference: bool = False,
        return_dict: bool | None = None,
    ) -> ReasoningCodecDecoderOutput | tuple[torch.Tensor, ...]:
        """
        Codes to audio.

        Args:
            reconstruction_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 12.5 Hz)`):
                Codes in `[0, config.reconstruction_codebook_size)`; shorter items end in frames of -1.
            reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`, *optional*):
                If given, their features are added to the condition. The released code has this path, but neither its
                training nor its command line uses it: leave them out for the best sound.
            num_inference_steps (`int`, *optional*, defaults to `config.num_flow_steps`): Steps of the solver.
            guidance_scale (`float`, *optional*, defaults to `config.flow_guidance_scale`):
                Classifier-free guidance; 1 or less is none, and twice as fast.
            generator (`torch.Generator` or a sequence of them, one per item, *optional*):
                Source of the noise. An item's noise depends on its generator alone: in a batch it sounds as it does
                alone.
            noise (`torch.FloatTensor` of shape `(batch_size, num_windows, latent frames, latent_dim)`, *optional*):
                Noise to use instead; a shorter window takes the first frames.
            decode_mode (`str`, *optional*, defaults to `config.decode_mode`):
                `"release"`: codes are repeated to fill whole windows, as released. `"exact"`: the last window is as
                short as it can be.
            window_seconds (`float`, *optional*, defaults to `config.decode_window_seconds`): Window of decoding.
            reference (`bool`, *optional*, defaults to `False`):
                Whether to join windows exactly as the released code does, which places each a little too late.
            return_dict (`bool`, *optional*): Whether to return a [`ReasoningCodecDecoderOutput`] or a tuple.

        Returns:
            [`ReasoningCodecDecoderOutput`]

        Raises:
            ValueError: If codes have another shape or lie outside their codebook, or if mode, window, noise or
                generators do not fit.
        """
        mode = _one_of("decode_mode", decode_mode or self.config.decode_mode, DECODE_MODES)
        steps = self.config.num_flow_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.flow_guidance_scale if guidance_scale is None else guidance_scale
        codes = self._split_codes("reconstruction_codes", reconstruction_codes)
        reasoning = [None] * len(codes)
        if reasoning_codes is not None:
            reasoning = self._split_codes("reasoning_codes", reasoning_codes)
            if len(reasoning) != len(codes):
                raise ValueError(
                    f"`reasoning_codes` and `reconstruction_codes` must hold the same items, got batches of "
                    f"{len(reasoning)} and {len(codes)}."
                )
        seconds = window_seconds or self.config.decode_window_seconds
        plans = [plan_decoding(item.shape[1], self.config, mode, seconds, reference) for item in codes]
        generators = _item_generators(generator, len(codes))
        self._check_noise(noise, plans)

        num_samples = [plan.num_samples for plan in plans]
        audio_values = torch.zeros(len(codes), max(num_samples), device=self.device)
        # Latents with which an item's next window begins.
        known: list[torch.Tensor | None] = [None] * len(codes)
        for index in range(max(len(plan.starts) for plan in plans)):
            for group in _equal_decoding_windows(plans, index, self.config.window_batch_size):
                frames = 2 * plans[group[0]].lengths[index]
                latents = self._decode_latents(
                    features=torch.cat(
                        [self._window_features(codes[i], reasoning[i], plans[i], index, reference) for i in group]
                    ),
                    noise=torch.stack(
                        [
                            self._draw_noise(frames, generators[i]) if noise is None else noise[i, index, :frames]
                            for i in group
                        ]
                    ).to(self.device),
                    known=torch.stack([known[i] for i in group]) if index else None,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generators=[generators[i] for i in group],
                )
                audio = self.scalar_codec.decode(latents.transpose(1, 2).to(self.dtype))[:, 0].float()
                for row, i in enumerate(group):
                    start = index * plans[i].hop_samples
                    window = audio[row, : plans[i].window_samples][: num_samples[i] - start]
                    if index > 0:
                        window = _fade_in(window, audio_values[i, start:], plans[i])
                    audio_values[i, start : start + len(window)] = window
                    known[i] = _context(latents[row], plans[i])
        output = ReasoningCodecDecoderOutput(
            audio_values=audio_values[:, None], padding_mask=_length_mask(num_samples, self.device)
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def decode_stream(
        self,
        reconstruction_codes: Iterable[torch.LongTensor],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        decode_mode: str | None = None,
        window_seconds: float | None = None,
    ) -> Iterator[torch.FloatTensor]:
        """
        Codes of one recording that arrive piece by piece to audio that leaves the same way.

        As soon as the codes of a window are there it is decoded, and its audio up to the start of the next window
        leaves: the last quarter of a window is what it looks ahead. The chunks in a row are what
        [`~ReasoningCodecModel.decode`] gives for the same options and the same generator.

        Args:
            reconstruction_codes (`Iterable[torch.LongTensor]`):
                Pieces of shape `(num_codebooks, frames)` with any number of frames.
            num_inference_steps, guidance_scale, generator, decode_mode, window_seconds (*optional*):
                As for [`~ReasoningCodecModel.decode`]. Shorter windows speak earlier and know less of what follows.

        Returns:
            An iterator of `torch.FloatTensor` of shape `(num_samples,)`. It holds codes and one window, and nothing
            after it is closed.

        Raises:
            ValueError: As [`~ReasoningCodecModel.decode`]; for codes when their piece arrives.
        """
        mode = _one_of("decode_mode", decode_mode or self.config.decode_mode, DECODE_MODES)
        seconds = window_seconds or self.config.decode_window_seconds
        options = {
            "num_inference_steps": self.config.num_flow_steps if num_inference_steps is None else num_inference_steps,
            "guidance_scale": self.config.flow_guidance_scale if guidance_scale is None else guidance_scale,
            "generators": _item_generators(generator, 1),
        }
        # Checks the window before the first codes are there.
        window = plan_decoding(1, self.config, "release", seconds).lengths[0]
        return self._stream_windows(reconstruction_codes, mode, seconds, window, options)

    @torch.no_grad()
    def _stream_windows(
        self,
        pieces: Iterable[torch.LongTensor],
        mode: str,
        seconds: float,
        window: int,
        options: dict,
    ) -> Iterator[torch.FloatTensor]:
        codes = torch.zeros(self.config.num_codebooks, 0, dtype=torch.long, device=self.device)
        known, left = None, None  # latents and samples that the window before has left to the next one
        index = 0
        for piece in _and_the_end(pieces):
            if piece is not None:
                codes = torch.cat((codes, *self._split_codes("reconstruction_codes", piece[None])), dim=1)
            if codes.shape[1] == 0:
                continue
            plan = plan_decoding(codes.shape[1], self.config, mode, seconds)
            while index < len(plan.starts):
                if piece is not None and codes.shape[1] < plan.starts[index] + window:
                    break  # more may come to fill this window
                latents = self._decode_latents(
                    features=self._window_features(codes, None, plan, index, reference=False),
                    noise=self._draw_noise(2 * plan.lengths[index], options["generators"][0])[None].to(self.device),
                    known=known,
                    **options,
                )
                audio = self.scalar_codec.decode(latents.transpose(1, 2).to(self.dtype))[0, 0].float()
                audio = audio[: min(plan.window_samples, plan.num_samples - index * plan.hop_samples)]
                if left is not None:
                    audio = _fade_in(audio, left, plan)
                known = _context(latents[0], plan)[None]
                yield audio[: plan.hop_samples]
                left, index = audio[plan.hop_samples :], index + 1
        if left is not None and len(left) > 0:
            yield left

    def _window_features(
        self,
        codes: torch.LongTensor,
        reasoning_codes: torch.LongTensor | None,
        plan: DecodingPlan,
        index: int,
        reference: bool,
    ) -> torch.Tensor:
        """Dequantised features of one window of one item, `(1, frames, hidden_size)`."""
        frames = torch.arange(plan.lengths[index], device=self.device) + plan.starts[index]
        own_frames = frames % codes.shape[1]
        features = self.reconstruction_branch.dequantize(codes[:, own_frames].T[None])
        if reasoning_codes is None:
            return features
        reasoning = self.reasoning_branch.dequantize(reasoning_codes.T[None])
        if reference:
            # The released code repeats each stream by itself, and adapts the reasoning of the first window only.
            repeated = torch.arange(2 * int(frames[-1]) // self.config.reasoning_interval + 1, device=self.device)
            reasoning, own_frames = reasoning[:, repeated % reasoning.shape[1]], frames
        condition = self.reconstruction_branch.reasoning_condition(reasoning, int(own_frames.max()) + 1)
        return features + condition[:, own_frames]

    def _decode_latents(
        self,
        features: torch.Tensor,
        noise: torch.Tensor,
        known: torch.Tensor | None,
        num_inference_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
    ) -> torch.Tensor:
        """Features at 12.5 Hz to latents at 25 Hz, `(batch_size, frames, latent_dim)`, that begin with those known."""
        length = 0 if known is None else known.shape[1]
        latents = sample_flow(
            self.flow_decoder,
            self.scheduler,
            noise,
            self.flow_conditioner(features),
            None if known is None else nn.functional.pad(known, (0, 0, 0, noise.shape[1] - length)),
            length,
            num_inference_steps,
            guidance_scale,
            sigma_min=self.config.sigma_min,
            generator=generators,
        )
        return latents if known is None else torch.cat((known.to(latents), latents[:, length:]), dim=1)

    def _draw_noise(self, frames: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(frames, self.config.latent_dim, generator=generator, device=generator.device)

    def _check_noise(self, noise: torch.Tensor | None, plans: list[DecodingPlan]) -> None:
        needed = (
            len(plans),
            max(len(plan.starts) for plan in plans),
            2 * max(plan.lengths[0] for plan in plans),
            self.config.latent_dim,
        )
        if noise is not None and (
            noise.ndim != 4 or any(have < need for have, need in zip(noise.shape, needed, strict=True))
        ):
            raise ValueError(
                "`noise` must have the shape (batch_size, num_windows, latent frames, latent_dim), here at least "
                f"{needed}, got {tuple(noise.shape)}."
            )

    def _split_codes(self, name: str, codes: torch.LongTensor) -> list[torch.LongTensor]:
        """Checks a batch of codes and takes the padding off each item: a list of `(num_codebooks, frames)`."""
        size = getattr(self.config, name.replace("_codes", "_codebook_size"))
        shape = f"(batch_size, {self.config.num_codebooks}, frames)"
        if not isinstance(codes, torch.Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"`{name}` must be an integer tensor, got {getattr(codes, 'dtype', type(codes))}.")
        if codes.ndim != 3 or codes.shape[1] != self.config.num_codebooks:
            raise ValueError(f"`{name}` must have the shape {shape}, got {tuple(codes.shape)}.")
        codes = codes.to(device=self.device, dtype=torch.long)
        own = (codes != CODE_PADDING).any(dim=1)
        lengths = own.sum(dim=1)
        if 0 in codes.shape or (lengths == 0).any():
            raise ValueError(f"`{name}` of shape {tuple(codes.shape)} holds an item without a frame.")
        inside = ((codes >= 0) & (codes < size)).all(dim=1)
        if (own != inside).any() or (
            own != (torch.arange(codes.shape[2], device=self.device) < lengths[:, None])
        ).any():
            raise ValueError(
                f"`{name}` must lie in [0, {size}), with frames of {CODE_PADDING} only after an item's last frame, "
                f"got values from {int(codes.min())} to {int(codes.max())}. Remove special tokens first."
            )
        return [item[:, :length] for item, length in zip(codes, lengths.tolist(), strict=True)]

    @torch.no_grad()
    def extract_features(
        self, input_values: torch.FloatTensor, padding_mask: torch.BoolTensor | None = None
    ) -> ReasoningCodecFeatures:
        """
        What the frozen parts make of a training batch; `forward(features=...)` need not compute it again.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Mono audio, at most as long as Whisper hears. It is zero-padded to the next 0.4 s.
            padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
                `True` for an item's own samples, which come first.

        Returns:
            [`ReasoningCodecFeatures`], all of them.
        """
        waveforms, lengths = pad_recordings(input_values, padding_mask, self.config, self.device)
        features = self.front_ends(waveforms)
        features.reasoning = self.reasoning_branch(features.whisper, features.music_semantic).quantized
        features.latents = self.scalar_codec.encode(waveforms[:, None].to(self.dtype)).transpose(1, 2)
        frames = torch.arange(features.latents.shape[1], device=self.device)
        features.latent_mask = frames * self.config.latent_hop_length < lengths[:, None]
        return features

    def forward(
        self,
        input_values: torch.FloatTensor | None = None,
        padding_mask: torch.BoolTensor | None = None,
        features: ReasoningCodecFeatures | None = None,
        return_loss: bool | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ReasoningCodecOutput | tuple[torch.Tensor, ...]:
        """
        In training the losses of the reconstruction stage; otherwise the audio, encoded and decoded again.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Mono audio at `config.sampling_rate`.
            padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
                `True` for an item's own samples.
            features ([`ReasoningCodecFeatures`], *optional*):
                Of `extract_features`, instead of `input_values`; for the losses.
            return_loss (`bool`, *optional*):
                Whether to compute the losses; by default in training mode, and wherever `features` are given.
            num_inference_steps, guidance_scale, generator: As for `decode`.
            return_dict (`bool`, *optional*): Whether to return a [`ReasoningCodecOutput`] or a tuple.

        Returns:
            [`ReasoningCodecOutput`]
        """
        if (features is None) == (input_values is None):
            raise ValueError("Give either `input_values` or `features`.")
        if return_loss is None:
            return_loss = self.training or features is not None
        if return_loss:
            features = self.extract_features(input_values, padding_mask) if features is None else features
            output = self._reconstruction_losses(ReasoningCodecFeatures(**features))
        else:
            encoded = self.encode(input_values, padding_mask, return_dict=True)
            audio_values = self.decode(
                encoded.reconstruction_codes,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                return_dict=True,
            ).audio_values
            # Codes cover whole frames: what they say beyond an item's last sample is cut off.
            lengths = [len(recording) for recording in _split_recordings(input_values, padding_mask)]
            audio_values = audio_values[..., : max(lengths)]
            for item, length in zip(audio_values, lengths, strict=True):
                item[:, length:] = 0
            output = ReasoningCodecOutput(
                audio_values=audio_values,
                padding_mask=_length_mask(lengths, self.device),
                reasoning_codes=encoded.reasoning_codes,
                reconstruction_codes=encoded.reconstruction_codes,
            )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _reconstruction_losses(self, features: ReasoningCodecFeatures) -> ReasoningCodecOutput:
        """Flow, feature and commitment losses (paper: weights 1, 0.1 and 0.5); the reasoning branch is not trained."""
        config = self.config
        frame_mask = None if features.latent_mask is None else features.latent_mask[:, ::2]
        streams = self.reconstruction_branch(
            features.whisper,
            features.wavlm,
            features.music_acoustic,
            features.music_semantic,
            features.reasoning,
            frame_mask=frame_mask,
            film_dropout=config.film_dropout if self.training else 0.0,
            update_codebooks=self.training,
        )
        # As released, the condition holds no reasoning features: they act through the modulation of the streams alone.
        condition = self.flow_conditioner(streams.quantized, features.latent_mask)
        flow_loss = self._flow_loss(features.latents, condition, features.latent_mask)
        phone_loss = masked_mean_squared_error(
            self.phone_feature_decoder(streams.phone.transpose(1, 2)),
            features.wavlm,
            None if features.latent_mask is None else features.latent_mask.repeat_interleave(2, dim=1),
        )
        structure_loss = masked_mean_squared_error(
            self.structure_feature_decoder(streams.structure.transpose(1, 2)),
            features.music_semantic,
            features.latent_mask,
        )
        loss = (
            flow_loss
            + config.phone_feature_loss_weight * phone_loss
            + config.structure_feature_loss_weight * structure_loss
            + config.commitment_loss_weight * streams.commitment_loss
        )
        return ReasoningCodecOutput(
            loss=loss,
            flow_loss=flow_loss,
            phone_feature_loss=phone_loss,
            structure_feature_loss=structure_loss,
            commitment_loss=streams.commitment_loss,
        )

    def _flow_loss(
        self, latents: torch.Tensor, condition: torch.Tensor, latent_mask: torch.BoolTensor | None
    ) -> torch.Tensor:
        """Flow loss at a random time of each path, some of them with known latents first or without a condition."""
        config = self.config
        batch_size, frames, _ = latents.shape
        known = torch.zeros(batch_size, frames, dtype=torch.bool, device=latents.device)
        if self.training:
            known = self._draw_known_frames(batch_size, frames, latents.device)
            conditional = torch.rand(batch_size, 1, 1, device=latents.device) >= config.unconditional_probability
            condition = condition * conditional
        weight = torch.ones_like(latents[..., 0])
        if latent_mask is not None:
            weight = torch.where(latent_mask, weight, config.padding_loss_weight)
        return flow_matching_loss(
            self.flow_decoder,
            latents=latents,
            noise=torch.randn_like(latents),
            time=torch.rand(batch_size, device=latents.device, dtype=latents.dtype),
            condition=condition,
            incontext_latents=torch.where(known[..., None], latents, 0.0),
            weight=torch.where(known, 0.0, weight),
            sigma_min=config.sigma_min,
        )

    def _draw_known_frames(self, batch_size: int, frames: int, device: torch.device) -> torch.BoolTensor:
        """A prefix of 32 to 64 frames, at most half of what there is, in half of the batches."""
        longest = min(self.config.max_incontext_length, frames // 2)
        shortest = min(self.config.min_incontext_length, longest)
        lengths = torch.randint(shortest, longest + 1, (batch_size, 1), device=device)
        present = torch.rand(1, 1, device=device) < self.config.incontext_probability
        return (torch.arange(frames, device=device) < lengths) & present


def _initialize_weight_norm(factors: parametrize.ParametrizationList) -> None:
    """A random direction, and the magnitude that leaves it as it is."""
    magnitude, direction = factors.original0, factors.original1
    init.kaiming_uniform_(direction, a=5**0.5)
    normalised = [dim for dim, size in enumerate(magnitude.shape) if size == 1]
    init.copy_(magnitude, torch.linalg.vector_norm(direction, dim=normalised, keepdim=True))


def _load_scheduler(pretrained_model_name_or_path: str | os.PathLike, kwargs: dict) -> SchedulerMixin:
    """The diffusers scheduler of the folder `scheduler/`, of the class that its configuration names."""
    hub_arguments = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
    config = FlowMatchEulerDiscreteScheduler.load_config(
        pretrained_model_name_or_path,
        subfolder=os.path.join(kwargs.get("subfolder") or "", SCHEDULER_FOLDER),
        **{name: kwargs[name] for name in hub_arguments if kwargs.get(name) is not None},
    )
    scheduler_class = getattr(diffusers, config["_class_name"], None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise ValueError(
            f"`{SCHEDULER_FOLDER}/scheduler_config.json` names the class {config['_class_name']!r}, which is no "
            "scheduler of the installed diffusers: update diffusers, or name another flow-matching scheduler."
        )
    return scheduler_class.from_config(config)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
    return value


def _split_recordings(input_values: torch.Tensor, padding_mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Checks a batch of waveforms and takes the padding off each: a list of `(num_samples,)` views."""
    shapes = "(batch_size, num_samples) or (batch_size, 1, num_samples)"
    if not isinstance(input_values, torch.Tensor) or not input_values.is_floating_point():
        raise ValueError(
            "`input_values` must be a floating-point tensor, as the feature extractor returns it, got "
            f"{getattr(input_values, 'dtype', type(input_values))}."
        )
    if input_values.ndim == 3 and input_values.shape[1] > 1:
        raise ValueError(
            f"`input_values` has {input_values.shape[1]} channels, shape {tuple(input_values.shape)}; the codec is "
            "mono. Mix them down, e.g. with `input_values.mean(dim=1)`."
        )
    if input_values.ndim not in (2, 3):
        raise ValueError(f"`input_values` must have the shape {shapes}, got {tuple(input_values.shape)}.")
    waveforms = input_values[:, 0] if input_values.ndim == 3 else input_values
    if 0 in waveforms.shape:
        raise ValueError(f"`input_values` of shape {tuple(input_values.shape)} holds no audio.")
    # Smallest and largest sample, for they are not finite if any is not, and an hour of samples needs no copy.
    if not all(bound.isfinite() for bound in waveforms.aminmax()):
        raise ValueError("`input_values` holds NaN or infinite samples: repair or drop the recording.")
    if padding_mask is None:
        return list(waveforms)
    if padding_mask.shape != waveforms.shape:
        raise ValueError(
            f"`padding_mask` must have the shape (batch_size, num_samples), here {tuple(waveforms.shape)}, got "
            f"{tuple(padding_mask.shape)}."
        )
    recordings = []
    for index, (waveform, own) in enumerate(zip(waveforms, padding_mask.bool().to(waveforms.device), strict=True)):
        length = int(own.sum())
        start = int(own.view(torch.uint8).argmax())
        if length == 0:
            raise ValueError(f"`padding_mask` leaves no sample of item {index}.")
        if not own[start : start + length].all():
            raise ValueError(
                f"`padding_mask` must mark one contiguous stretch of samples; that of item {index} has holes."
            )
        recordings.append(waveform[start : start + length])
    return recordings


def pad_recordings(
    input_values: torch.Tensor,
    padding_mask: torch.Tensor | None,
    config: ReasoningCodecConfig,
    device: torch.device,
) -> tuple[torch.Tensor, torch.LongTensor]:
    """A training batch, zero-padded to whole units of 0.4 s: `(batch_size, num_samples)`, and the items' lengths."""
    recordings = _split_recordings(input_values, padding_mask)
    lengths = [len(recording) for recording in recordings]
    padded_length = -(-max(lengths) // config.frame_unit) * config.frame_unit
    limit = config.whisper_config.max_source_positions * config.sampling_rate // 50
    if padded_length > limit:
        raise ValueError(
            f"The encoders hear at most {limit / config.sampling_rate:g} s at once, and a recording lasts "
            f"{max(lengths) / config.sampling_rate:g} s: cut it into pieces, or leave it out (in a recipe with "
            "data.max_seconds)."
        )
    waveforms = [nn.functional.pad(recording, (0, padded_length - len(recording))) for recording in recordings]
    return torch.stack(waveforms).to(device), torch.tensor(lengths, device=device)


def _length_mask(lengths: Sequence[int], device: torch.device) -> torch.BoolTensor:
    """`True` for the first `lengths[i]` of row `i`."""
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool, device=device)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = True
    return mask


def _equal_windows(plans: list[EncodingPlan], batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """All windows of all recordings as `(item, index)`, in groups of equal length of at most `batch_size`."""
    by_length = defaultdict(list)
    for item, plan in enumerate(plans):
        for index, length in enumerate(plan.lengths):
            by_length[length].append((item, index))
    for windows in by_length.values():
        for first in range(0, len(windows), batch_size):
            yield windows[first : first + batch_size]


def _equal_decoding_windows(plans: list[DecodingPlan], index: int, batch_size: int) -> Iterator[list[int]]:
    """Items that have a window `index`, in groups of equal length of at most `batch_size`."""
    by_length = defaultdict(list)
    for item, plan in enumerate(plans):
        if index < len(plan.lengths):
            by_length[plan.lengths[index]].append(item)
    for items in by_length.values():
        for first in range(0, len(items), batch_size):
            yield items[first : first + batch_size]


def _read_window(recording: torch.Tensor, plan: EncodingPlan, index: int) -> torch.Tensor:
    """The samples of a window, the recording repeated or followed by silence where it ends."""
    start, length = plan.starts[index], plan.lengths[index]
    if plan.periodic:
        return recording[torch.arange(start, start + length, device=recording.device) % len(recording)]
    window = recording[start : start + length]
    return nn.functional.pad(window, (0, length - len(window)))


def _place_codes(target: torch.Tensor, codes: torch.Tensor, start: int, num_frames: int) -> None:
    """Writes a window's codes into an item's `(num_codebooks, frames)`, as far as the item goes."""
    end = min(start + codes.shape[1], num_frames)
    target[:, start:end] = codes[:, : end - start]


def _and_the_end(pieces: Iterable[torch.LongTensor]) -> Iterator[torch.LongTensor | None]:
    """The pieces, then `None`."""
    yield from pieces
    yield None


def _fade_in(window: torch.Tensor, before: torch.Tensor, plan: DecodingPlan) -> torch.Tensor:
    """The samples of a window, cross-faded with those `before` that the window before has left in their place."""
    faded = min(plan.overlap_samples, len(window))
    ramp = torch.linspace(0, 1, plan.overlap_samples, dtype=torch.float64, device=window.device)[:faded]
    overlap = before[:faded] * (1 - ramp) + window[:faded] * ramp
    return torch.cat((overlap.to(window), window[faded:]))


def _context(latents: torch.Tensor, plan: DecodingPlan) -> torch.Tensor:
    """The latents of a window with which the next one begins."""
    start = plan.context_start % len(latents)
    return latents[start : start + plan.context_length]


def _item_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One generator per item, seeded from the one given for it: the caller's advances by one draw per item, however
    long the item is, so that an item's noise does not depend on what else is in the batch."""
    if isinstance(generator, Sequence):
        if len(generator) != batch_size:
            raise ValueError(f"`generator` must hold one generator per item, {batch_size}, got {len(generator)}.")
        sources = list(generator)
    else:
        sources = [generator] * batch_size
    generators = []
    for source in sources:
        device = "cpu" if source is None else source.device
        seed = torch.randint(2**63 - 1, (), generator=source, device=device).item()
        generators.append(torch.Generator(device=device).manual_seed(seed))
    return generators


__all__ = ["ReasoningCodecModel", "ReasoningCodecPreTrainedModel"]
