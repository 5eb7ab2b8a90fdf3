"""Configurations of the ReasoningCodec and of its parts. The defaults are the sizes of the released codec."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, WavLMConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec

ENCODE_MODES = ("release", "exact")
DECODE_MODES = ("release", "exact")

# Whisper and WavLM listen at 16 kHz; both give 50 frames per second, one per 320 samples.
FRONT_END_SAMPLING_RATE = 16000


@strict
class MusicEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of the music front end: a BEST-RQ / MusicFM conformer over a log-mel spectrogram, 25 frames a second.

    Args:
        sampling_rate (`int`, *optional*, defaults to 24000): Rate of the waveform, in Hz.
        num_mel_bins (`int`, *optional*, defaults to 128): Bands of the HTK mel filter bank.
        n_fft (`int`, *optional*, defaults to 2048): Samples of an analysis window (and of the Fourier transform).
        hop_length (`int`, *optional*, defaults to 240): Samples between two mel frames.
        mel_mean, mel_std (`float`, *optional*):
            Statistics, in dB, with which the log-mel is normalised.
        conv_dim (`int`, *optional*, defaults to 512):
            Channels of the two residual 2-D convolutions, which halve bands and frames twice.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
        conv_depthwise_kernel_size, rotary_embedding_base, layer_norm_eps, position_embeddings_type,
        max_source_positions, attention_dropout, hidden_dropout, activation_dropout, conformer_conv_dropout:
            As in [`~transformers.Wav2Vec2ConformerConfig`], whose layers are used.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of fresh linear weights.
    """

    model_type = "reasoning_codec_music_encoder"
    base_config_key = "music_encoder_config"

    sampling_rate: int = 24000
    num_mel_bins: int = 128
    n_fft: int = 2048
    hop_length: int = 240
    mel_mean: float = 6.768444971712967
    mel_std: float = 18.417922652295623
    conv_dim: int = 512
    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "swish"
    conv_depthwise_kernel_size: int = 31
    rotary_embedding_base: int = 10000
    layer_norm_eps: float = 1e-5
    position_embeddings_type: str = "rotary"
    max_source_positions: int = 5000
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    conformer_conv_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def validate_architecture(self):
        """The two strided convolutions divide the bands by four; a head takes an equal share of the width."""
        if self.num_mel_bins % 4:
            raise ValueError(f"`num_mel_bins` must be a multiple of 4, got {self.num_mel_bins}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )

    @property
    def frame_length(self) -> int:
        """Samples per output frame: the mel hop times the four-fold reduction of the convolutions."""
        return 4 * self.hop_length


@strict
class FlowDecoderConfig(PreTrainedConfig):
    r"""
    Configuration of the 1-D flow transformer that paints latents of the scalar codec.

    Args:
        num_attention_heads (`int`, *optional*, defaults to 24),
        attention_head_dim (`int`, *optional*, defaults to 64):
            Their product is the width of the transformer.
        num_layers (`int`, *optional*, defaults to 32): Transformer blocks.
        in_channels (`int`, *optional*, defaults to 1040): Noisy latent, in-context latent and condition together.
        out_channels (`int`, *optional*, defaults to 136): Channels of the latent.
        num_timestep_channels (`int`, *optional*, defaults to 512): Channels of the sinusoidal time embedding.
        max_positions (`int`, *optional*, defaults to 3000): Latent frames that the position table covers.
        norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of the layer norms.
    """

    model_type = "reasoning_codec_flow_decoder"
    base_config_key = "flow_config"

    num_attention_heads: int = 24
    attention_head_dim: int = 64
    num_layers: int = 32
    in_channels: int = 1040
    out_channels: int = 136
    num_timestep_channels: int = 512
    max_positions: int = 3000
    norm_eps: float = 1e-6

    @property
    def hidden_size(self) -> int:
        """Width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim


@strict
class ScalarCodecConfig(PreTrainedConfig):
    r"""
    Configuration of the scalar autoencoder (SQ codec): waveform to bounded latents on a grid of `1 / num_levels` and
    back. The release's own sizes live in its `sqcodec_config.yaml`; the defaults here are the assumed ones.

    Args:
        sampling_rate (`int`, *optional*, defaults to 24000): Rate of the waveform, in Hz.
        num_samples (`int`, *optional*, defaults to 2): Samples averaged together before the first strided block.
        downsample_factors, downsample_kernel_sizes (`tuple[int, ...]`): Strides and kernels of the encoder's blocks.
        upsample_factors, upsample_kernel_sizes (`tuple[int, ...]`): Strides and kernels of the decoder's blocks.
        latent_hidden_dim (`int`, *optional*, defaults to 136): Channels of the latent.
        default_kernel_size (`int`, *optional*, defaults to 7): Kernel of the first and last convolutions.
        delay_kernel_size (`int`, *optional*, defaults to 5): Kernel of the decoder's first, centred convolution.
        init_channel (`int`, *optional*, defaults to 48): Channels after the first convolution; doubled per block.
        res_kernel_size (`int`, *optional*, defaults to 7): Kernel of the residual units.
        causal (`bool`, *optional*, defaults to `True`): Whether convolutions see only the past.
        num_levels (`int`, *optional*, defaults to 9): Steps between 0 and 1 of the rounded latent.
    """

    model_type = "reasoning_codec_scalar_codec"
    base_config_key = "scalar_config"

    sampling_rate: int = 24000
    num_samples: int = 2
    downsample_factors: list[int] | tuple[int, ...] = (2, 3, 4, 4, 5)
    downsample_kernel_sizes: list[int] | tuple[int, ...] = (4, 6, 8, 8, 10)
    upsample_factors: list[int] | tuple[int, ...] = (5, 4, 4, 3, 2)
    upsample_kernel_sizes: list[int] | tuple[int, ...] = (10, 8, 8, 6, 4)
    latent_hidden_dim: int = 136
    default_kernel_size: int = 7
    delay_kernel_size: int = 5
    init_channel: int = 48
    res_kernel_size: int = 7
    causal: bool = True
    num_levels: int = 9

    def validate_architecture(self):
        """Each stride needs its kernel, and the decoder must undo what the encoder reduced."""
        for side in ("downsample", "upsample"):
            factors = getattr(self, f"{side}_factors")
            kernels = getattr(self, f"{side}_kernel_sizes")
            if len(factors) != len(kernels):
                raise ValueError(
                    f"`{side}_factors` and `{side}_kernel_sizes` must be equally long, got {factors} and {kernels}."
                )
        if math.prod(self.downsample_factors) != math.prod(self.upsample_factors):
            raise ValueError(
                "`downsample_factors` and `upsample_factors` must have the same product, got "
                f"{self.downsample_factors} and {self.upsample_factors}."
            )

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.num_samples * math.prod(self.downsample_factors)


@strict
class ReasoningCodecConfig(PreTrainedConfig):
    r"""
    Configuration of [`ReasoningCodecModel`]: 24 kHz audio to 8 reasoning codes at 5 Hz and 8 reconstruction codes at
    12.5 Hz (1 phone, 1 structure, 6 acoustic), and back.

    The frame rates are the architecture's own: one latent frame is 960 samples, one reconstruction frame two of those,
    one reasoning frame `reasoning_interval` of those.

    Args:
        whisper_config (`WhisperConfig` or `dict`, *optional*):
            Whisper encoder; the default is Whisper-medium. It always reads `2 * max_source_positions` mel frames.
        wavlm_config (`WavLMConfig` or `dict`, *optional*): WavLM encoder; the default is WavLM-base-plus.
        music_encoder_config (`MusicEncoderConfig` or `dict`, *optional*): BEST-RQ / MusicFM conformer.
        flow_config (`FlowDecoderConfig` or `dict`, *optional*): Flow transformer.
        scalar_config (`ScalarCodecConfig` or `dict`, *optional*): Scalar autoencoder.
        hidden_size (`int`, *optional*, defaults to 768): Width of both branches.
        wavlm_layers (`tuple[int, ...]`, *optional*, defaults to `(6, 7, 8, 9)`):
            WavLM hidden states whose mean is the phone feature; 0 is the input of the first layer.
        music_acoustic_layer (`int`, *optional*, defaults to 4),
        music_semantic_layer (`int`, *optional*, defaults to 11):
            Hidden states of the music encoder used as acoustic and as semantic (structure) feature.
        reasoning_num_layers (`int`, *optional*, defaults to 5): Transformer blocks of the reasoning branch.
        reasoning_head_dim (`int`, *optional*, defaults to 128): Width of one of its attention heads.
        reasoning_intermediate_size (`int`, *optional*, defaults to 3072): Width of its gated feed-forward layers.
        reasoning_rope_theta (`float`, *optional*, defaults to 10000.0): Base of its rotary positions.
        reasoning_interval (`int`, *optional*, defaults to 5): 25 Hz frames per query token.
        num_codebooks (`int`, *optional*, defaults to 8): Codes per frame, in each of the two streams.
        reasoning_codebook_size (`int`, *optional*, defaults to 4096),
        reasoning_codebook_dim (`int`, *optional*, defaults to 64): Codebooks of the reasoning stream.
        reconstruction_codebook_size (`int`, *optional*, defaults to 8192),
        reconstruction_codebook_dim (`int`, *optional*, defaults to 32): Codebooks of the reconstruction stream.
        phone_num_quantizers (`int`, *optional*, defaults to 1),
        structure_num_quantizers (`int`, *optional*, defaults to 1),
        acoustic_num_quantizers (`int`, *optional*, defaults to 6):
            How the `num_codebooks` reconstruction codes are divided.
        reasoning_front_ends (`tuple[str, ...]`, *optional*, defaults to `("whisper", "music")`):
            Encoders that the reasoning branch listens to; one of them alone is an ablation of the paper.
        film (`bool`, *optional*, defaults to `True`):
            Whether the reasoning modulates the reconstruction streams; `False` is an ablation of the paper.
        film_gamma (`float`, *optional*, defaults to 0.1): Strength of the scaling part of the time-FiLM.
        codebook_ema_decay (`float`, *optional*, defaults to 0.9): Decay of the codebooks' moving averages.
        reasoning_dead_code_threshold (`float`, *optional*, defaults to 0.1),
        reconstruction_dead_code_threshold (`float`, *optional*, defaults to 2.0):
            In training, codes whose averaged use falls below are replaced by vectors of the batch.
        sampling_rate (`int`, *optional*, defaults to 24000): Rate of the waveform, in Hz.
        encode_mode (`str`, *optional*, defaults to `"release"`):
            `"release"`: windows of `window_seconds`, short clips repeated to fill one, one frame more than fits for
            exact multiples. `"exact"`: a short clip is zero-padded to the next 0.4 s and gives the frames that fit.
        decode_mode (`str`, *optional*, defaults to `"release"`):
            `"release"`: codes are repeated to fill whole windows. `"exact"`: the last window is as short as it can be.
        window_seconds (`float`, *optional*, defaults to 30.0): Window of encoding.
        decode_window_seconds (`float`, *optional*, defaults to 20.0): Window of decoding.
        window_batch_size (`int`, *optional*, defaults to 8): Most windows that go through the networks together.
        num_flow_steps (`int`, *optional*, defaults to 10): Default number of solver steps of `decode`.
        flow_guidance_scale (`float`, *optional*, defaults to 1.5): Default guidance of `decode`; 1 or less is none.
        sigma_min (`float`, *optional*, defaults to 1e-4): Noise left at the data end of the flow's straight path.
        film_dropout (`float`, *optional*, defaults to 0.2):
            Training only: probability, per sample and stream, that the FiLM is bypassed.
        unconditional_probability (`float`, *optional*, defaults to 0.1):
            Training only: probability that a sample's condition is zeroed.
        incontext_probability (`float`, *optional*, defaults to 0.5):
            Training only: probability that a batch starts from given latents.
        min_incontext_length (`int`, *optional*, defaults to 32),
        max_incontext_length (`int`, *optional*, defaults to 64):
            Latent frames of that prefix. Windowed decoding continues from at most `max_incontext_length`.
        padding_loss_weight (`float`, *optional*, defaults to 0.01): Weight of padded latent frames in the flow loss.
        phone_feature_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the error with which WavLM features are predicted from the phone stream.
        structure_feature_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the error with which semantic music features are predicted from the structure stream. The release
            has the decoder for it and leaves it out of the loss.
        commitment_loss_weight (`float`, *optional*, defaults to 0.5): Weight of the quantizers' commitment.
    """

    model_type = "reasoning_codec"
    # Saved folders carry the code of their classes, for processes that do not have this package.
    _auto_class: ClassVar[str | None] = "AutoConfig"
    sub_configs_defaults = {  # noqa: RUF012  (declared so by transformers)
        "whisper_config": SubConfigSpec(
            WhisperConfig,
            init_kwargs={
                "d_model": 1024,
                "encoder_layers": 24,
                "encoder_attention_heads": 16,
                "encoder_ffn_dim": 4096,
                "decoder_layers": 24,
                "decoder_attention_heads": 16,
                "decoder_ffn_dim": 4096,
                "num_mel_bins": 80,
                "max_source_positions": 1500,
            },
        ),
        "wavlm_config": SubConfigSpec(WavLMConfig),
        "music_encoder_config": SubConfigSpec(MusicEncoderConfig),
        "flow_config": SubConfigSpec(FlowDecoderConfig),
        "scalar_config": SubConfigSpec(ScalarCodecConfig),
    }

    whisper_config: dict | PreTrainedConfig | None = None
    wavlm_config: dict | PreTrainedConfig | None = None
    music_encoder_config: dict | PreTrainedConfig | None = None
    flow_config: dict | PreTrainedConfig | None = None
    scalar_config: dict | PreTrainedConfig | None = None

    hidden_size: int = 768
    wavlm_layers: list[int] | tuple[int, ...] = (6, 7, 8, 9)
    music_acoustic_layer: int = 4
    music_semantic_layer: int = 11
    reasoning_num_layers: int = 5
    reasoning_head_dim: int = 128
    reasoning_intermediate_size: int = 3072
    reasoning_rope_theta: float | int = 10000.0
    reasoning_interval: int = 5
    num_codebooks: int = 8
    reasoning_codebook_size: int = 4096
    reasoning_codebook_dim: int = 64
    reconstruction_codebook_size: int = 8192
    reconstruction_codebook_dim: int = 32
    phone_num_quantizers: int = 1
    structure_num_quantizers: int = 1
    acoustic_num_quantizers: int = 6
    reasoning_front_ends: list[str] | tuple[str, ...] = ("whisper", "music")
    film: bool = True
    film_gamma: float | int = 0.1
    codebook_ema_decay: float | int = 0.9
    reasoning_dead_code_threshold: float | int = 0.1
    reconstruction_dead_code_threshold: float | int = 2.0

    sampling_rate: int = 24000
    encode_mode: str = "release"
    decode_mode: str = "release"
    window_seconds: float | int = 30.0
    decode_window_seconds: float | int = 20.0
    window_batch_size: int = 8
    num_flow_steps: int = 10
    flow_guidance_scale: float | int = 1.5

    sigma_min: float | int = 1e-4
    film_dropout: float | int = 0.2
    unconditional_probability: float | int = 0.1
    incontext_probability: float | int = 0.5
    min_incontext_length: int = 32
    max_incontext_length: int = 64
    padding_loss_weight: float | int = 0.01
    phone_feature_loss_weight: float | int = 0.1
    structure_feature_loss_weight: float | int = 0.0
    commitment_loss_weight: float | int = 0.5

    def validate_architecture(self):
        """The parts must fit each other: channels, codebooks, heads, layers and frame rates."""
        quantizers = self.phone_num_quantizers + self.structure_num_quantizers + self.acoustic_num_quantizers
        if quantizers != self.num_codebooks:
            raise ValueError(
                f"phone, structure and acoustic quantizers ({self.phone_num_quantizers} + "
                f"{self.structure_num_quantizers} + {self.acoustic_num_quantizers}) must add up to `num_codebooks` "
                f"({self.num_codebooks})."
            )
        if self.hidden_size % self.reasoning_head_dim:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `reasoning_head_dim` "
                f"({self.reasoning_head_dim})."
            )
        if self.reasoning_head_dim < 32:
            raise ValueError(
                "`reasoning_head_dim` must be at least 32, as many channels as the rotary positions turn, got "
                f"{self.reasoning_head_dim}."
            )
        if tuple(self.reasoning_front_ends) not in (("whisper", "music"), ("whisper",), ("music",)):
            raise ValueError(
                '`reasoning_front_ends` must be ("whisper", "music") or one of the two alone, got '
                f"{tuple(self.reasoning_front_ends)}."
            )
        if self.flow_config.out_channels != self.latent_dim:
            raise ValueError(
                f"`flow_config.out_channels` ({self.flow_config.out_channels}) must equal "
                f"`scalar_config.latent_hidden_dim` ({self.latent_dim})."
            )
        if self.flow_config.in_channels != 2 * self.latent_dim + self.hidden_size:
            raise ValueError(
                f"`flow_config.in_channels` ({self.flow_config.in_channels}) must be two latents and one condition: "
                f"{2 * self.latent_dim + self.hidden_size}."
            )
        if max(self.wavlm_layers) > self.wavlm_config.num_hidden_layers:
            raise ValueError(
                f"`wavlm_layers` {tuple(self.wavlm_layers)} reach beyond the {self.wavlm_config.num_hidden_layers} "
                "layers of WavLM."
            )
        if max(self.music_acoustic_layer, self.music_semantic_layer) > self.music_encoder_config.num_hidden_layers:
            raise ValueError(
                f"`music_acoustic_layer` ({self.music_acoustic_layer}) and `music_semantic_layer` "
                f"({self.music_semantic_layer}) must not reach beyond the "
                f"{self.music_encoder_config.num_hidden_layers} layers of the music encoder."
            )
        if not self.latent_hop_length == self.music_encoder_config.frame_length == self.sampling_rate // 25:
            raise ValueError(
                "The scalar codec and the music encoder must both give 25 frames per second, got "
                f"{self.latent_hop_length} and {self.music_encoder_config.frame_length} samples per frame at "
                f"{self.sampling_rate} Hz."
            )

    def validate_windows(self):
        """Windows must hold whole frames of both streams and fit the tables of Whisper and of the flow transformer."""
        for name, value, allowed in (
            ("encode_mode", self.encode_mode, ENCODE_MODES),
            ("decode_mode", self.decode_mode, DECODE_MODES),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
        whisper_seconds = self.whisper_config.max_source_positions / 50
        if not 0 < self.window_seconds <= whisper_seconds:
            raise ValueError(
                f"`window_seconds` must lie in (0, {whisper_seconds}], what "
                f"`whisper_config.max_source_positions={self.whisper_config.max_source_positions}` covers, got "
                f"{self.window_seconds}."
            )
        if not 0 < self.decode_window_seconds <= self.flow_config.max_positions / 25:
            raise ValueError(
                f"`decode_window_seconds` must lie in (0, {self.flow_config.max_positions / 25}], what "
                f"`flow_config.max_positions={self.flow_config.max_positions}` covers, got "
                f"{self.decode_window_seconds}."
            )

    @property
    def latent_dim(self) -> int:
        """Channels of the scalar codec's latents."""
        return self.scalar_config.latent_hidden_dim

    @property
    def latent_hop_length(self) -> int:
        """Samples per latent frame (25 Hz)."""
        return self.scalar_config.hop_length

    @property
    def reconstruction_hop_length(self) -> int:
        """Samples per reconstruction frame (12.5 Hz)."""
        return 2 * self.latent_hop_length

    @property
    def reasoning_hop_length(self) -> int:
        """Samples per reasoning frame (5 Hz)."""
        return self.reasoning_interval * self.latent_hop_length

    @property
    def frame_unit(self) -> int:
        """Samples after which frames of both streams begin together (0.4 s)."""
        return math.lcm(self.reconstruction_hop_length, self.reasoning_hop_length)


__all__ = ["FlowDecoderConfig", "MusicEncoderConfig", "ReasoningCodecConfig", "ScalarCodecConfig"]
