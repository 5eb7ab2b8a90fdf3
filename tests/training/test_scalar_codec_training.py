import pytest
import torch

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_scalar_codec import ScalarCodec
from uniaudio2.training.scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from uniaudio2.training.spectral_loss import MultiScaleSpectralLoss
from uniaudio2.training.tiny import train
from uniaudio2.training.waveforms import RandomCrops

SMALL = {
    "init_channel": 4,
    "num_samples": 4,
    "downsample_factors": (12, 20),
    "downsample_kernel_sizes": (24, 40),
    "upsample_factors": (20, 12),
    "upsample_kernel_sizes": (40, 24),
    "latent_hidden_dim": 8,
    "res_kernel_size": 3,
}
LOSS = {
    "spectral": {
        "window_sizes": [320, 800],
        "mel_bins": [20, 40],
        "mel_weight": 1.0,
        "linear_weight": 0.5,
        "floor": 1e-4,
    },
    "latent_noise": 0.1,
}


@pytest.fixture
def spectral_loss():
    return MultiScaleSpectralLoss(24000, **LOSS["spectral"])


def test_spectral_loss_is_zero_for_equal_waveforms_alone(spectral_loss):
    waveform = 0.1 * torch.randn(2, 4800)
    assert spectral_loss(waveform, waveform) == 0
    quieter, noisier = 0.9 * waveform, waveform + 0.1 * torch.randn_like(waveform)
    assert 0 < spectral_loss(quieter, waveform) < spectral_loss(noisier, waveform)


def test_spectral_loss_ignores_polarity(spectral_loss):
    waveform = 0.1 * torch.randn(2, 4800)
    assert spectral_loss(-waveform, waveform) < 1e-5


def test_spectral_loss_has_finite_gradients_in_silence(spectral_loss):
    silence = torch.zeros(1, 4800, requires_grad=True)
    spectral_loss(silence, torch.zeros(1, 4800)).backward()
    assert silence.grad.isfinite().all()


@torch.no_grad()
def test_scaled_to_data_latents_are_worth_rounding():
    waveform = 0.05 * torch.randn(8, 1, 9600)
    codec = ScalarCodec(ScalarCodecConfig(**SMALL))
    before = codec.encode(waveform).std()
    scale_to_data(codec, waveform)
    after = codec.encode(waveform).std()
    assert before < 0.2 < 0.4 < after
    assert codec.decode(codec.encode(waveform)).std().item() == pytest.approx(waveform.std().item(), rel=0.3)


def test_training_lowers_the_loss_and_goes_on_where_it_stopped(dataset, tmp_path):
    model = ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS)
    collator = RandomCrops(4800)
    scale_to_data(model.codec, collator(list(dataset))["waveform"][:, None])
    batch = collator(list(dataset))
    model.eval()
    before = model(batch["waveform"])["loss"].item()

    arguments = {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "save_steps": 10, "disable_tqdm": True}
    train(ScalarCodecTrainer, model, dataset, collator, tmp_path / "run", {**arguments, "max_steps": 20})
    middle = model(batch["waveform"])["loss"].item()
    assert middle < 0.9 * before

    fresh = ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS)
    train(ScalarCodecTrainer, fresh, dataset, collator, tmp_path / "run", {**arguments, "max_steps": 21})
    assert fresh(batch["waveform"])["loss"].item() == pytest.approx(middle, rel=0.1)


def test_the_encoder_can_be_left_alone():
    model = ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS, train_encoder=False)
    model(0.1 * torch.randn(2, 4800))["loss"].backward()
    assert all(p.grad is None for p in model.codec.encoder.parameters())
    assert all(p.grad is not None for p in model.codec.decoder.parameters())
