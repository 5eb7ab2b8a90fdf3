import copy

import pytest
import torch
from fake_release import FakeRelease, random_release, write_tokenizer

from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration


@pytest.fixture(scope="session")
def language_model(model) -> UniAudio2ForConditionalGeneration:
    """As the small model of all tests, but with several key-value heads, which fused attention can mix up."""
    config = copy.deepcopy(model.config)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    torch.manual_seed(1)
    return UniAudio2ForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def random_weights(language_model, codec) -> FakeRelease:
    return random_release(language_model, codec)


@pytest.fixture
def release(random_weights) -> FakeRelease:
    """A small release of random weights that a test may change before it writes it."""
    return copy.deepcopy(random_weights)


@pytest.fixture(scope="session")
def source(random_weights, tmp_path_factory):
    """That release on the disk, for tests that leave it as it is."""
    return random_weights.write(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    """A tokenizer with Llama's names in its slots."""
    return write_tokenizer(tokenizer, tmp_path_factory.mktemp("tokenizer"))
