"""Metrics that judge with a model, on tiny random ones: the plumbing is theirs, the numbers are transformers' own."""

import numpy as np
import pytest
import soundfile
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
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    pipeline,
)

from uniaudio2.evaluation.embedders import get_embedder
from uniaudio2.evaluation.metrics import load_metric
from uniaudio2.evaluation.metrics.class_divergence import divergence
from uniaudio2.evaluation.metrics.frechet_distance import gaussian_distance
from uniaudio2.evaluation.recognisers import get_recogniser

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


HOSTILE = [
    (np.full(RATE, np.nan), "NaN"),
    (np.zeros(0), "no samples"),
    (np.zeros((2, 100)), "shape"),
    (None, "no audio"),
]


@pytest.mark.parametrize(("samples", "message"), HOSTILE)
@pytest.mark.parametrize("name", ["clap_score", "class_divergence", "frechet_distance"])
def test_what_is_no_recording_is_an_error(name, samples, message, clap_folder, ast_folder, recordings):
    metric = load_metric(name, model=ast_folder if name == "class_divergence" else clap_folder)
    reference = "a dog barks" if name == "clap_score" else recordings[0]
    with pytest.raises(ValueError, match=f"Item 0: .*{message}"):
        metric.items([samples], [reference], RATE)


@pytest.mark.parametrize("name", ["clap_score", "class_divergence", "frechet_distance"])
def test_silence_and_one_sample_have_finite_values(name, clap_folder, ast_folder, recordings):
    metric = load_metric(name, model=ast_folder if name == "class_divergence" else clap_folder)
    references = ["a dog barks"] * 2 if name == "clap_score" else recordings[:2]
    assert np.isfinite(metric.items([np.zeros(RATE), np.ones(1)], references, RATE)).all()


@pytest.mark.parametrize("name", ["speaker_similarity", "clap_score", "class_divergence"])
def test_a_file_at_another_rate_gives_nearly_the_same(
    name, wavlm_folder, clap_folder, ast_folder, recordings, tmp_path
):
    folder = {"speaker_similarity": wavlm_folder, "clap_score": clap_folder, "class_divergence": ast_folder}[name]
    metric = load_metric(name, model=folder)
    # Below 4 kHz, where all rates can follow.
    slow = soxr.resample(soxr.resample(recordings[0], RATE, 8000), 8000, RATE)
    reference = "a dog barks" if name == "clap_score" else recordings[1]
    values = []
    for rate in (RATE, 44100):
        soundfile.write(tmp_path / f"{rate}.wav", soxr.resample(slow, RATE, rate), rate, subtype="FLOAT")
        values.append(metric.items([str(tmp_path / f"{rate}.wav")], [reference], RATE)[0, 0])
    assert values[1] == pytest.approx(values[0], abs=0.02)


@pytest.fixture(scope="module")
def word_tokenizer():
    words = ["<pad>", "<eos>", "<unk>", "Reference:", "Answer:", "1", "3", "5", "one", "two"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )  # fmt: skip


def test_the_judge_is_a_language_model(word_tokenizer, tmp_path):
    """A random Llama as judge: the rating is in what transformers' own pipeline says to the same prompt."""
    torch.manual_seed(3)
    size = len(word_tokenizer)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, initializer_range=1.0, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    word_tokenizer.save_pretrained(tmp_path)
    judge = load_metric(
        "judge", model=str(tmp_path), lowest=0, highest=10, prompt="Reference: {reference} {prediction}"
    )
    assert judge.check() == []
    writer = pipeline("text-generation", model=str(tmp_path), device="cpu")
    ratings, failures = [], {}
    answers = ["one", "two", "one two", "5", "two two 3"]
    for answer in answers:
        message = [{"role": "user", "content": f"Reference: one {answer}"}]
        reply = writer(message, do_sample=False, max_new_tokens=16, return_full_text=False)[0]["generated_text"]
        numbers = [word for word in reply.split() if word.isdigit()]
        ratings.append(float(numbers[0]) if numbers else None)
    rows = judge.items(answers, ["one"] * len(answers), failures=failures)
    assert any(rating is not None for rating in ratings)
    for index, rating in enumerate(ratings):
        assert (index in failures) if rating is None else rows[index, 0] == rating


MARKS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>",
         "<|startofprev|>", "<|notimestamps|>")  # fmt: skip


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    """A random Whisper that writes letters; ids of time stamps follow those of the tokenizer."""
    folder = tmp_path_factory.mktemp("whisper")
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz\u0120")}
    tokenizer = WhisperTokenizer(vocab=letters, merges=[], unk_token=MARKS[0])
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    end, start, english, chinese, translate, transcribe, previous, untimed = tokenizer.convert_tokens_to_ids(MARKS)
    ends = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(5)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer) + 1501, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            max_target_positions=64, init_std=1.0, suppress_tokens=None, begin_suppress_tokens=None, **ends,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(
        max_new_tokens=12, no_timestamps_token_id=untimed, is_multilingual=True, prev_sot_token_id=previous,
        lang_to_id={"<|en|>": english, "<|zh|>": chinese}, max_initial_timestamp_index=50,
        task_to_id={"transcribe": transcribe, "translate": translate},
        # It writes letters and nothing else.
        suppress_tokens=[start, english, chinese, translate, transcribe, previous, untimed], **ends,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


def test_whisper_hears_what_transformers_pipeline_hears(whisper_folder):
    listen = get_recogniser(whisper_folder, "en")
    generator = np.random.default_rng(0)
    time = np.arange(2 * RATE) / RATE
    recordings = [level * generator.standard_normal(2 * RATE) for level in (0.001, 0.1, 0.5)]
    recordings += [np.sin(2 * np.pi * frequency * time) for frequency in (100, 440, 3000)]
    expected = pipeline("automatic-speech-recognition", model=whisper_folder, device="cpu")
    heard = []
    for recording in recordings:
        waveform = recording.astype(np.float32)
        heard.append(listen(waveform, RATE))
        options = {"language": "en", "task": "transcribe", "do_sample": False, "num_beams": 1}
        assert heard[-1] == expected(waveform.copy(), generate_kwargs=options)["text"].strip()
    assert len(set(heard)) > 1
    # More than a window of 30 s, and less than a frame.
    assert isinstance(listen(np.tile(recordings[1], 16).astype(np.float32), RATE), str)
    assert isinstance(listen(np.zeros(1, np.float32), 24000), str)


def test_word_errors_and_ratings_of_what_whisper_hears(whisper_folder, recordings):
    listen = get_recogniser(whisper_folder, "en")
    said = listen(recordings[0], RATE) or "nothing"
    broken = [np.full(RATE, np.nan), np.zeros(0), None]
    metric = load_metric("word_error_rate", normalizer="none", recogniser=whisper_folder, language="en")
    assert metric.check() == []
    rows = metric.items([recordings[0], *broken], [said, "a b", "a b", "a b"], RATE)
    assert rows[:, 0].tolist() == [0 if listen(recordings[0], RATE) else 1, 2, 2, 2]
    # The judge rates an answer in which nothing is heard lowest, unasked: nobody gains by saying nothing.
    judge = load_metric("judge", model=lambda prompt: "4" if said in prompt else "2", recogniser=whisper_folder)
    heard = get_recogniser(whisper_folder)(recordings[0], RATE)
    ratings = judge.items([recordings[0], *broken], ["one"] * 4, RATE)[:, 0].tolist()
    assert ratings[1:] == [1, 1, 1] and ratings[0] == (1 if not heard.strip() else 4 if said in heard else 2)
