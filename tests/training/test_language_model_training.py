import pytest
import torch

from uniaudio2.feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing.data_collator import UniAudio2DataCollator
from uniaudio2.processing.processing_uniaudio2 import UniAudio2Processor
from uniaudio2.training.audio_ids import audio_ids
from uniaudio2.training.language_model import LanguageModelTrainer, TaskExamples, encode_corpus
from uniaudio2.training.tiny import TinyRecipe, train
from uniaudio2.training.tokenizer import train_tokenizer


@pytest.fixture
def steps(recipe, tmp_path) -> TinyRecipe:
    return TinyRecipe(recipe, tmp_path, tmp_path)


@pytest.fixture
def recordings(steps, dataset, tmp_path) -> list[dict]:
    codec = ReasoningCodecModel(steps.codec_config()).eval()
    encode_corpus(codec, dataset, batch_size=3, path=tmp_path / "codes" / "train.pt")
    return torch.load(tmp_path / "codes" / "train.pt")


def test_codes_of_a_corpus_are_those_of_each_recording_alone(recordings, steps, dataset):
    assert [row["text"] for row in recordings] == [row["text"] for row in dataset.rows]
    torch.manual_seed(0)
    lengths = [row["reconstruction_codes"].shape for row in recordings]
    assert lengths == [(8, -(-row["num_samples"] // 1920)) for row in dataset.rows]


def test_every_recording_serves_every_task(recordings):
    examples = TaskExamples(recordings, ["TTS", "ASR"])
    assert len(examples) == 2 * len(recordings) == len(examples.lengths())
    assert [examples[i]["task"] for i in range(4)] == ["TTS", "ASR", "TTS", "ASR"]
    assert examples[2]["text"] == examples[3]["text"] == recordings[1]["text"]


def test_the_language_model_learns(recordings, steps, tmp_path):
    tokenizer = train_tokenizer([row["text"] for row in recordings], 320)
    processor = UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **audio_ids(steps.codec_config()))
    model = UniAudio2ForConditionalGeneration(steps.language_model_config(tokenizer)).eval()
    examples = TaskExamples(recordings, ["TTS", "ASR"])
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    batch = collator([examples[i] for i in range(4)])
    before = model(**batch)
    arguments = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "disable_tqdm": True}
    train(LanguageModelTrainer, model, examples, collator, tmp_path / "run", arguments)
    after = model(**batch)
    assert after.text_loss < before.text_loss
    assert after.audio_loss < before.audio_loss


def test_audio_ids_do_not_overlap():
    ids = audio_ids(ReasoningCodecConfig(reasoning_codebook_size=64, reconstruction_codebook_size=128))
    offset = ids["reasoning_vocab_size"]
    special = [ids[f"reasoning_{name}_token_id"] for name in ("bos", "eos", "pad")]
    special += [offset + ids[f"reconstruction_{name}_token_id"] for name in ("bos", "eos", "pad")]
    special += [ids["audio_prompt_bos_token_id"], ids["audio_prompt_eos_token_id"]]
    assert len(set(special)) == 8
    codes = {*range(64), *range(offset, offset + 128)}
    assert not codes & set(special)
    assert max(special) < offset + ids["reconstruction_vocab_size"]
