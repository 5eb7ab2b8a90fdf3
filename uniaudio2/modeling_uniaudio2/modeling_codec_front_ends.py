"""What the codec hears: Whisper, WavLM and the music encoder on one batch of waveform windows of equal length.

Formula tables (resampling kernel, mel filters) are built where they are used and cached, rather than kept as buffers:
a buffer that is not saved comes back uninitialised from `from_pretrained`, and one in half precision is another
filter.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers import WavLMModel
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import ModelOutput

from .configuration_reasoning_codec import FRONT_END_SAMPLING_RATE, ReasoningCodecConfig
from .modeling_music_encoder import MusicEncoder

# Whisper's own analysis: 25 ms windows every 10 ms.
WHISPER_N_FFT = 400
WHISPER_HOP_LENGTH = 160
# WavLM's convolutions lose 240 samples of context; with this many zeros at the end they give exactly one frame per
# 320.
WAVLM_PADDING = 160


@dataclass
class ReasoningCodecFeatures(ModelOutput):
    """
    Features of the frozen encoders, from which both branches work, and what else training needs only once per clip.

    Args:
        whisper, wavlm (`torch.FloatTensor` of shape `(batch_size, channels, frames at 50 Hz)`): Speech features.
        music_acoustic, music_semantic (`torch.FloatTensor` of shape `(batch_size, channels, frames at 25 Hz)`):
            Features of the music encoder.
        reasoning (`torch.FloatTensor` of shape `(batch_size, frames at 5 Hz, hidden_size)`, *optional*):
            Quantised output of the reasoning branch, which the reconstruction stage does not train.
        latents (`torch.FloatTensor` of shape `(batch_size, frames at 25 Hz, latent_dim)`, *optional*):
            Latents of the scalar codec, the target of training.
        latent_mask (`torch.BoolTensor` of shape `(batch_size, frames at 25 Hz)`, *optional*):
            `False` where there is only padding.
    """

    whisper: torch.FloatTensor | None = None
    wavlm: torch.FloatTensor | None = None
    music_acoustic: torch.FloatTensor | None = None
    music_semantic: torch.FloatTensor | None = None
    reasoning: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    latent_mask: torch.BoolTensor | None = None


@lru_cache(maxsize=4)
def resampling_kernel(
    source_rate: int, target_rate: int, lowpass_filter_width: int = 6, rolloff: float = 0.99
) -> tuple[torch.Tensor, int]:
    """Hann-windowed sinc filters, one per output phase, of torchaudio's default resampler, which the release uses.

    Args:
        source_rate, target_rate (`int`): Rates without common divisor, e.g. 3 and 2.
        lowpass_filter_width (`int`, *optional*, defaults to 6): Zero crossings on each side.
        rolloff (`float`, *optional*, defaults to 0.99): Cut-off as a share of the lower Nyquist frequency.

    Returns:
        The kernel of shape `(target_rate, 1, taps)`, built in float64 and stored in float32, and its width: the
        samples it reaches back.
    """
    cutoff = rolloff * min(source_rate, target_rate)
    width = math.ceil(lowpass_filter_width * source_rate / cutoff)
    taps = torch.arange(-width, width + source_rate, dtype=torch.float64) / source_rate
    phases = torch.arange(0, -target_rate, -1, dtype=torch.float64) / target_rate
    time = ((taps + phases[:, None]) * cutoff).clamp(-lowpass_filter_width, lowpass_filter_width)
    window = torch.cos(time * math.pi / lowpass_filter_width / 2) ** 2
    kernel = torch.sinc(time) * window * (cutoff / source_rate)
    return kernel[:, None].float(), width


def resample(waveform: torch.Tensor, source_rate: int, target_rate: int) -> torch.Tensor:
    """Resamples `(batch_size, num_samples)` to `(batch_size, ceil(num_samples * target_rate / source_rate))`."""
    divisor = math.gcd(source_rate, target_rate)
    source_rate, target_rate = source_rate // divisor, target_rate // divisor
    if source_rate == target_rate:
        return waveform
    kernel, width = resampling_kernel(source_rate, target_rate)
    padded = nn.functional.pad(waveform[:, None], (width, width + source_rate))
    phases = nn.functional.conv1d(padded, kernel.to(waveform), stride=source_rate)
    resampled = phases.transpose(1, 2).flatten(1)
    return resampled[:, : math.ceil(waveform.shape[-1] * target_rate / source_rate)]


@lru_cache(maxsize=4)
def whisper_mel_filters(num_mel_bins: int) -> torch.Tensor:
    """Slaney mel filters of Whisper, `(num_mel_bins, bins of the Fourier transform)`."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + WHISPER_N_FFT // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=FRONT_END_SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().T


def whisper_log_mel(waveform: torch.Tensor, num_mel_bins: int, num_frames: int) -> torch.Tensor:
    """Log-mel spectrogram equal to that of [`~transformers.WhisperFeatureExtractor`], on any device and in batches.

    Args:
        waveform (`torch.FloatTensor` of shape `(batch_size, num_samples)`): 16 kHz audio.
        num_mel_bins (`int`): Bands.
        num_frames (`int`): Frames, 100 per second, to which the audio is zero-padded or cut.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_mel_bins, num_frames)`. The floor, 8 below the maximum in log10,
        is each item's own.
    """
    num_samples = num_frames * WHISPER_HOP_LENGTH
    waveform = nn.functional.pad(waveform[:, :num_samples], (0, max(0, num_samples - waveform.shape[1])))
    window = torch.hann_window(WHISPER_N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, WHISPER_N_FFT, WHISPER_HOP_LENGTH, window=window, return_complex=True)
    power = (spectrum[..., :-1].abs() ** 2).contiguous()
    log_mel = (whisper_mel_filters(num_mel_bins).to(waveform.device) @ power).clamp(min=1e-10).log10()
    log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (log_mel + 4.0) / 4.0


class ReasoningFrontEnds(nn.Module):
    """The two frozen encoders that the reasoning branch listens to: Whisper and the music encoder.

    Args:
        config (`ReasoningCodecConfig`): Configuration of the codec.
    """

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        self.sampling_rate = config.sampling_rate
        self.frame_length = config.latent_hop_length
        self.music_acoustic_layer = config.music_acoustic_layer
        self.music_semantic_layer = config.music_semantic_layer
        # Its attention has one implementation.
        config.music_encoder_config._attn_implementation = "eager"
        self.whisper = WhisperEncoder(config.whisper_config)
        self.music_encoder = MusicEncoder(config.music_encoder_config)

    def forward(self, waveform: torch.Tensor) -> ReasoningCodecFeatures:
        """
        Args:
            waveform (`torch.FloatTensor` of shape `(batch_size, num_samples)`): 24 kHz audio, windows of equal length.

        Returns:
            [`ReasoningCodecFeatures`] of the encoders alone.
        """
        waveform = waveform.float()
        return self.encode(waveform, resample(waveform, self.sampling_rate, FRONT_END_SAMPLING_RATE))

    def encode(self, waveform: torch.Tensor, resampled: torch.Tensor) -> ReasoningCodecFeatures:
        """Features of `(batch_size, num_samples)` audio at both rates, 24 kHz and 16 kHz."""
        music_acoustic, music_semantic = self.music_features(waveform)
        return ReasoningCodecFeatures(
            whisper=self.whisper_features(resampled, waveform.shape[-1], music_acoustic.shape[-1]),
            music_acoustic=music_acoustic,
            music_semantic=music_semantic,
        )

    def music_features(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Acoustic and semantic features, each `(batch_size, channels, num_samples // 960)`."""
        last_layer = max(self.music_acoustic_layer, self.music_semantic_layer)
        hidden_states = self.music_encoder(waveform[:, None], num_layers=last_layer)
        return (
            hidden_states[self.music_acoustic_layer].transpose(1, 2),
            hidden_states[self.music_semantic_layer].transpose(1, 2),
        )

    def whisper_features(self, resampled: torch.Tensor, num_samples: int, music_frames: int) -> torch.Tensor:
        """Whisper's output over the audio's own frames, `(batch_size, channels, frames at 50 Hz)`.

        Whisper always hears its full window: silence after the audio is attended to, and its frames are dropped.
        """
        num_frames = 2 * self.whisper.config.max_source_positions
        log_mel = whisper_log_mel(resampled, self.whisper.config.num_mel_bins, num_frames)
        hidden_states = self.whisper(log_mel.to(self.whisper.conv1.weight.dtype)).last_hidden_state
        # Rounded as in the released code, where the second count repairs what the first loses to truncation.
        frames = max(int(num_samples / self.sampling_rate * 50), 2 * music_frames)
        return hidden_states[:, :frames].transpose(1, 2)


class CodecFrontEnds(ReasoningFrontEnds):
    """All three frozen encoders: WavLM too, to which the reconstruction branch listens.

    Args:
        config (`ReasoningCodecConfig`): Configuration of the codec.
    """

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__(config)
        self.wavlm_layers = tuple(config.wavlm_layers)
        # transformers refuses to build it with another attention.
        config.wavlm_config._attn_implementation = "eager"
        self.wavlm = WavLMModel(config.wavlm_config)

    def encode(self, waveform: torch.Tensor, resampled: torch.Tensor) -> ReasoningCodecFeatures:
        features = super().encode(waveform, resampled)
        features.wavlm = self.wavlm_features(resampled)[..., : 2 * features.music_acoustic.shape[-1]]
        return features

    def wavlm_features(self, resampled: torch.Tensor) -> torch.Tensor:
        """Mean of the chosen hidden states, `(batch_size, channels, frames at 50 Hz)`; layers above do not run."""
        model = self.wavlm
        padded = nn.functional.pad(resampled, (0, WAVLM_PADDING))
        hidden_states = model.feature_extractor(padded.to(model.encoder.layer_norm.weight.dtype)).transpose(1, 2)
        hidden_states, _ = model.feature_projection(hidden_states)
        hidden_states = hidden_states + model.encoder.pos_conv_embed(hidden_states)
        if not model.config.do_stable_layer_norm:
            hidden_states = model.encoder.layer_norm(hidden_states)
        chosen = [hidden_states] if 0 in self.wavlm_layers else []
        position_bias = None
        for index, layer in enumerate(model.encoder.layers[: max(self.wavlm_layers)], start=1):
            hidden_states, position_bias = layer(hidden_states, position_bias=position_bias)[:2]
            if index in self.wavlm_layers:
                chosen.append(hidden_states)
        return torch.stack(chosen).mean(dim=0).transpose(1, 2)
