import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_scalar_codec import ScalarCodec
from uniaudio2.training.discriminators import WaveformDiscriminators
from uniaudio2.training.scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from uniaudio2.training.spectral_loss import MultiScaleSpectralLoss
from uniaudio2.training.stage_trainer import StageTrainingArguments
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


DISCRIMINATORS = {"window_sizes": [128, 512], "periods": [2, 3], "channels": 4}


@pytest.fixture
def adversarial_model():
    return ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS, discriminators=DISCRIMINATORS)


def test_discriminator_losses_are_those_of_a_computation_by_hand():
    discriminators = WaveformDiscriminators(**DISCRIMINATORS)
    real, generated = 0.1 * torch.randn(2, 2401), 0.1 * torch.randn(2, 2401)
    hinge, adversarial, feature = [], [], []
    for member in discriminators.members:
        (on_real, real_layers), (on_generated, layers) = member(real), member(generated)
        hinge.append((1 - on_real).clamp(min=0).mean() + (1 + on_generated).clamp(min=0).mean())
        adversarial.append(-on_generated.mean())
        distances = [((a - b).abs().mean() / b.abs().mean()) for a, b in zip(layers, real_layers, strict=True)]
        feature.append(sum(distances) / len(distances))
    torch.testing.assert_close(discriminators.discriminator_loss(real, generated), sum(hinge) / 4)
    found = discriminators.generator_losses(real, generated)
    torch.testing.assert_close(torch.stack(found), torch.stack([sum(adversarial) / 4, sum(feature) / 4]))
    assert discriminators.generator_losses(real, real)[1] == 0


def test_each_player_learns_from_its_own_losses_alone(adversarial_model):
    waveform = 0.1 * torch.randn(2, 4800)
    torch.manual_seed(0)
    output = adversarial_model(waveform)
    output["loss"].backward()
    found = {name: parameter.grad.clone() for name, parameter in adversarial_model.named_parameters()}

    # The discriminators: from the hinge loss, and from nothing else.
    adversarial_model.zero_grad()
    adversarial_model.discriminators.discriminator_loss(waveform, output["audio_values"].detach()).backward()
    for name, parameter in adversarial_model.discriminators.named_parameters():
        torch.testing.assert_close(found[f"discriminators.{name}"], parameter.grad)

    # The codec: from the three others.
    adversarial_model.zero_grad()
    torch.manual_seed(0)
    adversarial_model.discriminators, discriminators = None, adversarial_model.discriminators
    again = adversarial_model(waveform)
    adversarial, feature = discriminators.generator_losses(waveform, again["audio_values"])
    (again["loss"] + adversarial + 2.0 * feature).backward()
    for name, parameter in adversarial_model.codec.named_parameters():
        torch.testing.assert_close(found[f"codec.{name}"], parameter.grad, rtol=1e-4, atol=1e-6)


def test_without_discriminators_nothing_changes(adversarial_model):
    waveform = 0.1 * torch.randn(2, 4800)
    alone = ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS)
    alone.load_state_dict(
        {name: value for name, value in adversarial_model.state_dict().items() if name.startswith("codec")}
    )
    torch.manual_seed(0)
    expected = alone(waveform)
    torch.manual_seed(0)
    output = adversarial_model(waveform)
    assert expected.keys() == {"loss", "audio_values"}
    assert torch.equal(output["spectral_loss"], expected["loss"])
    assert torch.equal(adversarial_model.eval()(waveform)["loss"], alone.eval()(waveform)["loss"])


def test_adversarial_training_lowers_the_feature_loss_and_logs_its_parts(dataset, tmp_path):
    model = ScalarCodecForTraining(
        ScalarCodecConfig(**SMALL), **LOSS, train_encoder=False, discriminators=DISCRIMINATORS
    )
    collator = RandomCrops(4800)
    scale_to_data(model.codec, collator(list(dataset))["waveform"][:, None])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = ScalarCodecTrainer(
        model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=15,
            learning_rate=3e-3,
            logging_steps=5,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        data_collator=collator,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "spectral_loss" in entry]
    for name in ("spectral_loss", "feature_loss", "discriminator_loss"):
        assert logged[-1][name] < logged[0][name]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"codec", "discriminators"}
    assert not any(name.startswith("codec.encoder") for name in moved)


@pytest.mark.parametrize("parts", [{}, {"discriminators": DISCRIMINATORS, "train_encoder": False}])
def test_speed_is_logged_with_the_operations_that_torch_counts(parts, dataset, tmp_path):
    model = ScalarCodecForTraining(ScalarCodecConfig(**SMALL), **LOSS, **parts)
    values = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    arguments = StageTrainingArguments(str(tmp_path), per_device_train_batch_size=4, device_tflops=1e-3, **values)
    collator = RandomCrops(4800)
    trainer = ScalarCodecTrainer(model, arguments, train_dataset=dataset, data_collator=collator)
    trainer.train()
    with FlopCounterMode(display=False) as counter:
        model.train()(collator([dataset[index] for index in range(4)])["waveform"])["loss"].backward()
    assert trainer.state.total_flos == 2 * counter.get_total_flops()
    assert trainer.tokens_seen() == 2 * 4 * 4800 // 960
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and entry["model_flops_utilization"] > 0 for entry in logs)
    assert len(logs) == 2 and all(entry["loss"] >= entry["spectral_loss"] for entry in logs)
