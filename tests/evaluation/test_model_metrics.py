"""Metrics that judge with a model, on tiny random ones: the plumbing is theirs, the numbers are transformers' own."""

import numpy as np
import pytest
import soxr
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WavLMModel,
)

from uniaudio2.evaluation.embedders import get_embedder
from uniaudio2.evaluation.metrics import load_metric
from uniaudio2.evaluation.metrics.class_divergence import divergence
from uniaudio2.evaluation.metrics.frechet_distance import gaussian_distance

RATE = 16000
WAVLM = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "tdnn_dim": [8, 8, 8, 8, 16],
    "xvector_output_dim": 8,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def recordings():
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(RATE)).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    WavLMForXVector(WavLMConfig(**WAVLM)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ast_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=100, num_labels=5
    )
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=100).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "dog": 5, "barks": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = ClapConfig(
        text_config={"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "max_position_embeddings": 32, "projection_dim": 8},
        audio_config={"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
                      "hidden_size": 32, "projection_dim": 8, "num_mel_bins": 64, "spec_size": 256,
                      "enable_fusion": False},
        projection_dim=8,
    )  # fmt: skip
    ClapModel(config).save_pretrained(folder)
    ClapProcessor(
        ClapFeatureExtractor(),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
            model_max_length=30,
        ),
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_speaker_similarity(wavlm_folder, recordings):
    metric = load_metric("speaker_similarity", model=wavlm_folder)
    assert metric.check() == []
    rows = metric.items([recordings[0], recordings[1]], [recordings[0], recordings[0]], RATE)
    assert rows[0, 0] == pytest.approx(1)
    model, extractor = WavLMForXVector.from_pretrained(wavlm_folder).eval(), Wav2Vec2FeatureExtractor()
    with torch.no_grad():
        inputs = extractor(recordings[:2], sampling_rate=RATE, return_tensors="pt", return_attention_mask=False)
        a, b = model(**inputs).embeddings.numpy()
    assert rows[1, 0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.zeros(RATE), "silent"), (np.zeros(1), "short"), (np.full(RATE, np.nan), "NaN"), (np.zeros(0), "no samples")],
)
def test_speaker_similarity_of_hostile_input(wavlm_folder, recordings, samples, message):
    with pytest.raises(ValueError, match=message):
        load_metric("speaker_similarity", model=wavlm_folder).items([samples], [recordings[0]], RATE)


def test_class_divergence(ast_folder, recordings):
    metric = load_metric("class_divergence", model=ast_folder)
    rows = metric.items([recordings[0], recordings[1]], [recordings[0], recordings[2]], RATE)
    assert rows[0, 0] == 0
    model, extractor = (
        ASTForAudioClassification.from_pretrained(ast_folder).eval(),
        ASTFeatureExtractor(max_length=100),
    )
    with torch.no_grad():
        logits = model(**extractor(recordings, sampling_rate=RATE, return_tensors="pt")).logits.double().numpy()
    assert rows[1, 0] == pytest.approx(divergence(logits[2], logits[1]), abs=1e-6)
    # Silence and a single sample have classes too: those that the classifier gives them.
    assert np.isfinite(metric.items([np.zeros(RATE), np.ones(1)], recordings[:2], RATE)).all()


def test_clap_score(clap_folder, recordings):
    metric = load_metric("clap_score", model=clap_folder)
    (value,) = metric.items([recordings[0]], ["a dog barks"], RATE)[0]
    embedder = get_embedder("clap", clap_folder)
    audio, text = embedder(recordings[0], RATE), embedder.embed_text("a dog barks")
    # transformers' own: its logits are the cosine times a scale.
    heard = embedder.processor.feature_extractor(
        soxr.resample(recordings[0], RATE, 48000), sampling_rate=48000, return_tensors="pt", truncation="rand_trunc"
    )
    read = embedder.processor.tokenizer("a dog barks", return_tensors="pt")
    with torch.no_grad():
        logits = embedder.model(**heard, **read).logits_per_audio
    assert value == pytest.approx(float(logits / embedder.model.logit_scale_a.exp().item()), abs=1e-5)
    assert value == pytest.approx(audio @ text / np.linalg.norm(audio) / np.linalg.norm(text))
    with pytest.raises(ValueError, match="empty"):
        metric.items([recordings[0]], [" "], RATE)


@pytest.mark.parametrize("kind", ["clap", "ast", "wavlm"])
def test_frechet_distance(kind, clap_folder, ast_folder, tmp_path, recordings):
    folder = {"clap": clap_folder, "ast": ast_folder}.get(kind)
    if folder is None:
        folder = str(tmp_path)
        WavLMModel(WavLMConfig(**WAVLM)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    metric = load_metric("frechet_distance", embedder=kind, model=folder)
    values = metric.compute(predictions=recordings[:2], references=recordings[2:], sampling_rate=RATE)
    embed = get_embedder(kind, folder)
    vectors = np.array([embed(audio, RATE) for audio in recordings])
    expected = gaussian_distance(
        vectors[:2].mean(0), np.cov(vectors[:2].T), vectors[2:].mean(0), np.cov(vectors[2:].T)
    )
    assert values["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    same = metric.compute(predictions=recordings, references=recordings, sampling_rate=RATE)
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(embed(np.ones(1), RATE)).all()
