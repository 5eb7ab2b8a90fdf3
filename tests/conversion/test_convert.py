"""What `convert_release` makes of a release, in each form that the files may have."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from uniaudio2 import (
    ReasoningCodecConfig,
    ReasoningCodecModel,
    UniAudio2Config,
    UniAudio2ForConditionalGeneration,
    UniAudio2Processor,
)
from uniaudio2.conversion import convert, convert_release, release_files, restore_release
from uniaudio2.conversion.codec import codec_key_table
from uniaudio2.conversion.key_table import NEW_WEIGHT_NORM, OLD_WEIGHT_NORM
from uniaudio2.conversion.language_model import fused_attention_table
from uniaudio2.conversion.release_files import ReleaseFiles
from uniaudio2.conversion.release_parts import plan_language_model
from uniaudio2.conversion.verify import verify_part


@pytest.fixture(scope="module")
def convert_folder(tokenizer_folder, random_weights):
    def run(source, output, **options):
        settings = [*random_weights.options, *options.pop("settings", [])]
        return convert_release(source, output, **{"tokenizer": tokenizer_folder, "settings": settings, **options})

    return run


@pytest.fixture(scope="module")
def converted(source, convert_folder, tmp_path_factory):
    return convert_folder(source, tmp_path_factory.mktemp("converted") / "model", verify=True)


@pytest.fixture(scope="module")
def record(converted) -> dict:
    return json.loads((converted / "conversion.json").read_text())


def assert_same_weights(folder, other):
    for name in ("model.safetensors", "codec/model.safetensors"):
        weights, others = load_file(folder / name), load_file(other / name)
        assert weights.keys() == others.keys()
        different = [key for key, value in weights.items() if not torch.equal(value, others[key])]
        assert not different, different[:5]


# --- The folder ---


def test_both_models_load_with_the_weights_of_the_release(converted, language_model, codec):
    model, info = UniAudio2ForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values())
    for name, weight in language_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    loaded, info = ReasoningCodecModel.from_pretrained(converted / "codec", output_loading_info=True)
    assert not any(info.values())
    for name, weight in codec.state_dict().items():
        if not name.endswith((".cluster_size", ".embed_avg")):  # the release has a history of training
            assert torch.equal(loaded.state_dict()[name], weight), name
    assert type(loaded.scheduler) is type(codec.scheduler)


def test_the_configs_are_those_of_the_models(converted, language_model, codec):
    config, saved = UniAudio2Config.from_pretrained(converted), {"architectures", "auto_map", "dtype", "_name_or_path"}

    def differing(ours, theirs) -> set[str]:
        ours, theirs = ours.to_dict(), theirs.to_dict()
        return {name for name in theirs if ours[name] != theirs[name]} - saved

    assert differing(config, language_model.config) <= {"depth_decoder_config"}  # whose `dtype` is saved
    assert not differing(config.depth_decoder_config, language_model.config.depth_decoder_config)
    loaded = ReasoningCodecConfig.from_pretrained(converted / "codec")
    for name in ("scalar_config", "flow_config", "music_encoder_config"):
        assert not differing(getattr(loaded, name), getattr(codec.config, name))
    assert loaded.encode_mode == loaded.decode_mode == "release"


def test_statistics_of_the_codebooks_are_kept(converted, random_weights):
    """A training of the codec goes on from them."""
    weights = load_file(converted / "codec" / "model.safetensors")
    table = codec_key_table(ReasoningCodecModel.from_pretrained(converted / "codec").config)
    names = [name for name in table if name.endswith((".cluster_size", ".embed_avg", ".initted"))]
    assert len(names) == 3 * (8 + 8)
    assert all(torch.equal(weights[table[name]], random_weights.codec[name]) for name in names)


def test_processor_tokenizer_and_generation_config(converted):
    processor = UniAudio2Processor.from_pretrained(converted)
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens([bos + 2, bos + 3, bos + 5, bos + 11, bos + 20]) == [
        "<think>", "</think>", "</answer>", "<transcription>", "<text_pad_token>",
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(bos + 4) == "<|finetune_right_pad_id|>"
    assert processor(text="seven three", task="TTS")["input_ids"].shape[-1] == 9
    assert processor.codec.config.model_type == "reasoning_codec"
    model = UniAudio2ForConditionalGeneration.from_pretrained(converted)
    assert processor.reconstruction_eos_token_id == model.config.reconstruction_eos_token_id
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.max_new_tokens) == (True, 0.9, 50, 500)
    assert settings.eos_token_id == tokenizer.eos_token_id


def test_the_record_tells_where_everything_came_from(record, source, converted):
    for name, facts in record["files"].items():
        content = (source / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {"llm_ep3.checkpoint", "ReasoningCodec.checkpoint", "sqcodec.pth", "llm_config.yaml"} <= record[
        "files"
    ].keys()
    assert "whisper-medium/pytorch_model.bin" not in record["files"]

    text, codec = record["language_model"], record["codec"]
    origin = {name: entry["from"] for name, entry in text["fields"].items() if "from" in entry}
    assert origin["reasoning_vocab_size"] == "llm_config.yaml: audio_reason_card"
    assert origin["vocab_size"].startswith("tensors: ")
    assert origin["num_attention_heads"] == "--set"
    assert origin["rms_norm_eps"] == "constant of the released code"
    assert origin["bos_token_id"].startswith("tokenizer: ")
    assert codec["fields"]["scalar_config"]["causal"]["from"] == "sqcodec_config.yaml: generator.config: causal"
    assert text["yaml values that are not used"] == ["llm_pretrained_model"]

    assert text["weights"].keys() == load_file(converted / "model.safetensors").keys()
    query = text["weights"]["model.layers.0.self_attn.q_proj.weight"]
    assert (
        query["from"] == "audio_understanding_expert.transformer.h.0.attn.qkv.weight" and "queries" in query["taken"]
    )
    assert codec["dropped"]["wavlm_transfer.kernel"] == "the resampling kernel is a formula"
    assert codec["not in the release"] == {}
    assert len(text["tokenizer"]["renamed slots"]) == 13


def test_verification_reads_everything_back(record):
    for part in ("language_model", "codec"):
        found = record[part]["verified"]
        assert found["missing, unexpected or mismatched keys"] == 0 and found["largest difference of those"] == 0
        number = found["weights equal to their source bit for bit"] + found["weights recomputed from their source"]
        assert number == len(record[part]["weights"])
    assert record["codec"]["verified"]["sine sweep"]["samples"] == 48000


# --- The forms a release comes in ---


def with_wrapper(release, folder):
    release.language_model = {f"module.{name}": value for name, value in release.language_model.items()}
    release.codec = {f"module.{name}": value for name, value in release.codec.items()}


def with_old_weight_norm(release, folder):
    for new, old in NEW_WEIGHT_NORM.items():
        release.codec = {name.replace(new, old): value for name, value in release.codec.items()}


def with_new_weight_norm(release, folder):
    for old, new in OLD_WEIGHT_NORM.items():
        release.scalar_codec = {name.replace(old, new): value for name, value in release.scalar_codec.items()}


def with_encoders_outside(release, folder):
    release.move_encoders_to_their_files(folder)


def with_other_encoders_outside(release, folder):
    """Both inside and outside, with different values: those inside win."""
    inside = release.codec
    release.codec = {name: value + 1 if value.is_floating_point() else value for name, value in inside.items()}
    release.move_encoders_to_their_files(folder)
    release.codec = inside


def with_what_training_left(release, folder):
    release.rest = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "scheduler": None, "epoch": 3}


@pytest.mark.parametrize(
    "change",
    [
        with_wrapper,
        with_old_weight_norm,
        with_new_weight_norm,
        with_encoders_outside,
        with_other_encoders_outside,
        with_what_training_left,
    ],
)
def test_every_form_gives_the_same_folder(change, release, converted, convert_folder, tmp_path):
    change(release, tmp_path / "release")
    release.write(tmp_path / "release")
    assert_same_weights(convert_folder(tmp_path / "release", tmp_path / "model"), converted)


def test_older_layout_of_attention(release, language_model, converted, convert_folder, tmp_path):
    for name, (_, stack) in fused_attention_table(language_model.config).items():
        heads, groups, dim = stack.num_attention_heads, stack.num_key_value_heads, stack.head_dim
        parts = release.language_model.pop(name).split([heads * dim, groups * dim, groups * dim])
        by_group = [part.unflatten(0, (groups, -1)) for part in parts]
        release.language_model[name.replace("attn.qkv", "attn.attn")] = torch.cat(by_group, dim=1).flatten(0, 1)
    release.write(tmp_path / "release")
    folder = convert_folder(tmp_path / "release", tmp_path / "model", only="language-model", verify=True)
    weights, expected = load_file(folder / "model.safetensors"), load_file(converted / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_the_variant_with_other_codebooks(release, convert_folder, tmp_path):
    """Their size is read from the tensors, and that the language model has another is said."""
    for name, value in release.codec.items():
        if name.startswith("vq_") and "_codebook" in name and value.ndim > 1:
            release.codec[name] = value[:, :24].clone()
    release.write(tmp_path / "release")
    (tmp_path / "release" / "ReasoningCodec.checkpoint").rename(
        tmp_path / "release" / "ReasoningCodec_1024.checkpoint"
    )
    folder = convert_folder(tmp_path / "release", tmp_path / "model")
    assert ReasoningCodecModel.from_pretrained(folder / "codec").config.reconstruction_codebook_size == 24
    (warning,) = json.loads((folder / "conversion.json").read_text())["warnings"]
    assert "the language model has 32 codes" in warning and "the codec 24" in warning


def test_what_only_training_needs_may_be_absent(release, converted, convert_folder, tmp_path):
    """A file stripped for inference converts, to a codec that encodes and decodes the same."""
    lacking = ("embed_avg", "cluster_size", "initted", "num_batches_tracked", "masked_spec_embed")
    for name in list(release.codec):
        if name.endswith(lacking) or "_decoder." in name or "conformer.layer_norm" in name:
            del release.codec[name]
    release.write(tmp_path / "release")
    folder = convert_folder(tmp_path / "release", tmp_path / "model", only="codec", verify=True)
    filled = json.loads((folder / "conversion.json").read_text())["codec"]["not in the release"]
    assert filled and all(reason for reason in filled.values())
    wave = functional.pad(torch.randn(1, 9000, generator=torch.Generator().manual_seed(0)), (0, 600))
    one, other = (ReasoningCodecModel.from_pretrained(path / "codec") for path in (folder, converted))
    assert torch.equal(one.encode(wave).reconstruction_codes, other.encode(wave).reconstruction_codes)
    assert set(one.state_dict()["reasoning_branch.quantizer.layers.0._codebook.cluster_size"].flatten().tolist()) == {
        1
    }


# --- Options ---


def test_dtype_is_that_of_the_language_model(source, converted, convert_folder, tmp_path):
    folder = convert_folder(source, tmp_path / "model", dtype="bfloat16", verify=True)
    weights, originals = load_file(folder / "model.safetensors"), load_file(converted / "model.safetensors")
    assert all(torch.equal(weights[name], value.bfloat16()) for name, value in originals.items())
    assert UniAudio2ForConditionalGeneration.from_pretrained(folder).dtype == torch.bfloat16
    codec = load_file(folder / "codec" / "model.safetensors")
    assert not any(value.dtype == torch.bfloat16 for value in codec.values())


def test_files_are_no_larger_than_asked(source, converted, convert_folder, tmp_path):
    folder = convert_folder(source, tmp_path / "model", max_shard_size="100KB", only="language-model")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2 and all(path.stat().st_size < 110_000 for path in shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    model = UniAudio2ForConditionalGeneration.from_pretrained(folder)
    expected = load_file(converted / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    assert not (folder / "codec").exists()


def test_fields_can_be_set(source, convert_folder, tmp_path):
    settings = ["trained_context_length=512", "codec.flow_config.norm_eps=1e-5", "codec.encode_mode=exact"]
    folder = convert_folder(source, tmp_path / "model", settings=settings)
    codec = json.loads((folder / "codec" / "config.json").read_text())
    assert codec["flow_config"]["norm_eps"] == 1e-5 and codec["encode_mode"] == "exact"
    assert json.loads((folder / "config.json").read_text())["trained_context_length"] == 512


def test_back_to_the_released_file_bit_for_bit(converted, random_weights, tmp_path):
    restored = torch.load(restore_release(converted, tmp_path / "llm.checkpoint"), weights_only=True, mmap=True)
    assert restored.keys() == {"model"}
    assert restored["model"].keys() == random_weights.language_model.keys()
    for name, weight in random_weights.language_model.items():
        assert restored["model"][name].dtype == weight.dtype and torch.equal(restored["model"][name], weight), name


def test_verification_notices_a_changed_weight(source, converted, convert_folder, tokenizer_folder, tmp_path):
    folder = convert_folder(source, tmp_path / "model", only="language-model")
    settings = {
        "language_model": {"num_attention_heads": 4},
        "language_model.depth_decoder_config": {"num_attention_heads": 2},
    }
    part, _ = plan_language_model(ReleaseFiles(str(source)), "llm_ep3.checkpoint", str(tokenizer_folder), settings)
    verify_part(part, folder)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        weights = load_file(converted / "model.safetensors")
        weights[name].view(-1)[3] += 1e-3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="differ"):
            verify_part(part, folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="other weights"):
        verify_part(part, folder)


# --- The Hub ---


def test_only_what_is_needed_is_fetched(source, converted, convert_folder, tmp_path, monkeypatch):
    fetched = []

    def snapshot_download(repository, revision, allow_patterns):
        assert repository == "authors/release" and revision == (source.name if fetched else None)
        fetched.extend(allow_patterns)
        return str(source)

    monkeypatch.setattr(release_files, "snapshot_download", snapshot_download)
    folder = convert_folder("authors/release", tmp_path / "model")
    assert_same_weights(folder, converted)
    record = json.loads((folder / "conversion.json").read_text())
    assert record["source"] == "authors/release" and record["revision"] == source.name
    assert sorted(fetched) == sorted(record["files"]) and len(set(fetched)) == len(fetched)
    assert not any("music_ssl" in name or name.endswith(".bin") for name in fetched)


def test_the_folder_is_uploaded_in_one_commit(source, convert_folder, tmp_path, monkeypatch):
    calls = []

    class Api:
        def whoami(self):
            calls.append("whoami")

        def create_repo(self, name, exist_ok):
            calls.append(("create", name, exist_ok))
            return type("Repository", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, folder_path, repo_id, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(convert, "HfApi", Api)
    folder = convert_folder(source, tmp_path / "model", only="codec", push_to_hub="mine")
    assert calls == ["whoami", ("create", "mine", True), ("upload", "me/mine", ["codec", "conversion.json"])]
    assert folder.is_dir()


def test_a_failed_upload_leaves_the_folder_and_says_how_to_try_again(source, convert_folder, tmp_path, monkeypatch):
    class Api:
        def whoami(self):
            pass

        def create_repo(self, name, exist_ok):
            raise ConnectionError("no network")

    monkeypatch.setattr(convert, "HfApi", Api)
    with pytest.raises(OSError, match=r"complete, but was not uploaded: no network.*hf upload mine"):
        convert_folder(source, tmp_path / "model", only="codec", push_to_hub="mine")
    assert (tmp_path / "model" / "codec" / "config.json").is_file()
