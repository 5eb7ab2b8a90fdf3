import numpy as np
import pytest
import torch

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import MusicEncoderConfig
from uniaudio2.modeling_uniaudio2.modeling_music_encoder import MusicEncoder, mel_decibels

FRAME = 960


@pytest.fixture
def encoder() -> MusicEncoder:
    torch.manual_seed(0)
    config = MusicEncoderConfig(
        conv_dim=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24
    )
    encoder = MusicEncoder(config).eval()
    for module in encoder.modules():  # statistics of a trained model: neither zero nor one
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return encoder


@pytest.fixture
def wave() -> torch.Tensor:
    return torch.randn(2, 5 * FRAME, generator=torch.Generator().manual_seed(1))


class TestMel:
    def test_it_is_the_textbook_formula(self, encoder, wave):
        """Frame by frame in double precision, with a Fourier transform by definition."""
        config = encoder.config
        n_fft, num_bins = config.n_fft, config.n_fft // 2 + 1
        padded = np.pad(wave[0].double().numpy(), n_fft // 2, mode="reflect")
        samples = np.arange(n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * samples / n_fft)
        fourier = np.exp(-2j * np.pi * np.outer(np.arange(num_bins), samples) / n_fft)

        def mel(hertz):
            return 2595 * np.log10(1 + hertz / 700)

        corners = 700 * (10 ** (np.linspace(0, mel(12000), config.num_mel_bins + 2) / 2595) - 1)
        frequencies = np.linspace(0, 12000, num_bins)[:, None]
        rise = (frequencies - corners[:-2]) / np.diff(corners)[:-1]
        fall = (corners[2:] - frequencies) / np.diff(corners)[1:]
        filters = np.maximum(0, np.minimum(rise, fall))

        decibels = mel_decibels(wave[:1], config)[0].numpy()
        assert decibels.shape == (128, wave.shape[1] // 240 + 1)
        for frame in (0, 1, 10, 20):
            power = np.abs(fourier @ (window * padded[frame * 240 : frame * 240 + n_fft])) ** 2
            np.testing.assert_allclose(decibels[:, frame], 10 * np.log10(power @ filters), atol=5e-3)

    def test_silence_is_floored(self, encoder):
        assert torch.equal(mel_decibels(torch.zeros(1, 4800), encoder.config), torch.full((1, 128, 21), -100.0))

    def test_there_are_four_mel_frames_to_an_output_frame(self, encoder, wave):
        assert encoder.log_mel(wave).shape == (2, 128, 20)
        assert encoder(wave)[0].shape == (2, 5, 16)

    def test_it_stays_in_single_precision(self, encoder, wave):
        expected = encoder.log_mel(wave)
        assert torch.equal(encoder.to(torch.bfloat16).log_mel(wave), expected)


class TestForward:
    def test_the_shape_of_the_input_is_free(self, encoder, wave):
        torch.testing.assert_close(encoder(wave[:, None]), encoder(wave), rtol=0, atol=0)

    def test_samples_beyond_the_last_frame_are_cut_off(self, encoder, wave):
        longer = torch.cat((wave, torch.ones(2, FRAME - 1)), dim=1)
        torch.testing.assert_close(encoder(longer), encoder(wave), rtol=0, atol=0)

    def test_a_batch_gives_what_its_items_give(self, encoder, wave):
        batch, singles = encoder(wave), [encoder(item[None]) for item in wave]
        for layer, states in enumerate(batch):
            torch.testing.assert_close(states, torch.cat([single[layer] for single in singles]))

    def test_fewer_layers_give_the_first_hidden_states(self, encoder, wave):
        every = encoder(wave)
        assert len(every) == 4
        for num_layers in (0, 1, 2):
            torch.testing.assert_close(encoder(wave, num_layers=num_layers), every[: num_layers + 1], rtol=0, atol=0)
        torch.testing.assert_close(encoder(wave, num_layers=3), every, rtol=0, atol=0)

    def test_layers_that_are_not_asked_for_do_not_run(self, encoder, wave):
        encoder.layers[2].register_forward_hook(lambda *_: pytest.fail("the third layer ran"))
        encoder(wave, num_layers=2)

    def test_the_last_hidden_state_is_normalised(self, encoder, wave):
        torch.nn.init.constant_(encoder.layer_norm.weight, 0.0)
        torch.nn.init.constant_(encoder.layer_norm.bias, 7.0)
        assert torch.equal(encoder(wave)[-1], torch.full((2, 5, 16), 7.0))

    def test_attention_implementations_agree(self, encoder, wave):
        encoder.set_attn_implementation("eager")
        eager = encoder(wave)
        encoder.set_attn_implementation("sdpa")
        torch.testing.assert_close(encoder(wave), eager)

    def test_activation_checkpointing_changes_nothing(self, encoder, wave):
        gradients = []
        encoder.train()
        for enable in (encoder.activation_checkpointing_disable, encoder.activation_checkpointing_enable):
            enable()
            encoder.zero_grad()
            encoder(wave)[-1][..., 0].sum().backward()
            gradients.append(encoder.subsampling.linear.weight.grad.clone())
        assert gradients[0].abs().sum() > 0
        torch.testing.assert_close(*gradients)


class TestWeights:
    def test_loading_restores_every_tensor(self, encoder, wave, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded, info = MusicEncoder.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(loaded.state_dict(), encoder.state_dict(), rtol=0, atol=0)
        assert dict(loaded.named_buffers()).keys() <= loaded.state_dict().keys(), "a buffer that is not saved is lost"
        torch.testing.assert_close(loaded(wave), encoder(wave), rtol=0, atol=0)

    def test_the_default_size_is_the_released_one(self):
        with torch.device("meta"):
            encoder = MusicEncoder(MusicEncoderConfig())
        # The released encoder less what only its pre-training used and a positional convolution that is never called.
        assert sum(parameter.numel() for parameter in encoder.parameters()) == 316_343_296


class TestErrors:
    @pytest.mark.parametrize("shape", [(4800,), (1, 2, 4800), (1, 1, 1, 4800)])
    def test_other_shapes_are_refused(self, encoder, shape):
        with pytest.raises(ValueError, match=r"\(batch_size, num_samples\).*got \(" + str(shape[0])):
            encoder(torch.zeros(shape))

    def test_a_waveform_shorter_than_the_analysis_window_is_refused(self, encoder):
        with pytest.raises(ValueError, match="got 1919 samples, of which 960 fill frames of 960"):
            encoder(torch.zeros(1, 1919))
        assert encoder(torch.zeros(1, 1920))[0].shape[1] == 2

    @pytest.mark.parametrize("num_layers", [-1, 4])
    def test_layers_that_do_not_exist_are_refused(self, encoder, wave, num_layers):
        with pytest.raises(ValueError, match=f"between 0 and 3, got {num_layers}"):
            encoder(wave, num_layers=num_layers)
