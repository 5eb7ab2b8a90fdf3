"""Time and memory of `uniaudio2 convert` on a release of the true sizes, made of random weights.

    python benchmarks/convert_full_size.py WORK_FOLDER [--output FILE]

The fake release has the layout, names, shapes and sizes of the real one: the language model in bfloat16 (4.86 billion
parameters, 9.7 GB), the codec in float32 (7.5 GB). It is made, converted and turned back one tensor at a time, each
step in a process of its own, and what came back is compared with what went in. The folder needs 45 GB while this runs,
and is removed at the end.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from uniaudio2.conversion.checkpoint_files import TorchFile
from uniaudio2.conversion.codec import codec_key_table
from uniaudio2.conversion.language_model import original_language_model_state_dict
from uniaudio2.conversion.scalar_codec import scalar_codec_key_table
from uniaudio2.conversion.text_tokenizer import LLAMA_BOS, LLAMA_VOCAB_SIZE, SLOTS
from uniaudio2.conversion.torch_archive import write_archive
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration

RESULTS = Path(__file__).parent / "results" / "convert_full_size.json"
YAML_IDS = {
    "reason_bos": 4096,
    "reason_eos": 4097,
    "reason_pad_token": 4099,
    "semantic_bos": 8192,
    "semantic_eos": 8193,
    "semantic_pad_token": 8195,
    "audio_prompt_bos": 8196,
    "audio_prompt_eos": 8197,
    "text_pad_token": 128020,
}
# Of a bfloat16: its sign and mantissa, and an exponent that makes it about 0.01.
SIGN_AND_MANTISSA, EXPONENT = 0x807F - 0x10000, 120 << 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to work; must not exist")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"default {RESULTS.name}")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_release(args.folder)
        return

    args.folder.mkdir(parents=True)
    try:
        results = measure(args.folder)
    finally:
        shutil.rmtree(args.folder)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def measure(folder: Path) -> dict:
    release, converted, back = folder / "release", folder / "converted", folder / "back.checkpoint"
    command = [sys.executable, "-m", "uniaudio2.cli", "convert"]
    steps = {
        "make the release": [sys.executable, __file__, str(release), "--make"],
        "convert": [*command, str(release), str(converted), "--tokenizer", str(release / "tokenizer.json")],
        "convert --reverse": [*command, "--reverse", str(converted), str(back)],
    }
    measured = {name: run_measured(step) for name, step in steps.items()}
    record = json.loads((converted / "conversion.json").read_text(encoding="utf-8"))
    return {
        "machine": {
            "cores": os.cpu_count(),
            "cpu": platform.processor() or platform.machine(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
        "versions": record["versions"],
        "release_gb": gigabytes(release),
        "converted_gb": gigabytes(converted),
        "largest_tensor_gb": round(max(largest_tensor(path) for path in converted.rglob("*.safetensors")), 3),
        "steps": measured,
        "the language model came back bit for bit": is_same(release / "llm_ep3.checkpoint", back),
    }


def run_measured(command: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def make_release(folder: Path) -> None:
    """Random weights under the released names, and the small files beside them."""
    torch.manual_seed(0)
    folder.mkdir()
    config, codec_config = UniAudio2Config.from_size("3b"), ReasoningCodecConfig()
    with torch.device("meta"):
        language_model = UniAudio2ForConditionalGeneration(config).to(torch.bfloat16).state_dict()
        codec = ReasoningCodecModel(codec_config).state_dict()
    write_random(folder / "llm_ep3.checkpoint", "model", original_language_model_state_dict(language_model, config))
    table = codec_key_table(codec_config)
    write_random(folder / "ReasoningCodec.checkpoint", "model", {name: codec[ours] for name, ours in table.items()})
    table = scalar_codec_key_table(codec_config.scalar_config)
    scalar = {name: codec[f"scalar_codec.{ours}"] for name, ours in table.items()}
    write_random(folder / "sqcodec.pth", "codec_model", scalar)

    (folder / "llm_config.yaml").write_text(
        yaml.safe_dump(
            {
                "llm_name": "meta-llama/Llama-3.2-3B",
                "local_model": "Llama-3.2-300M",
                "parallel_number": 9,
                "audio_reason_card": config.reasoning_vocab_size,
                "audio_semantic_card": config.reconstruction_vocab_size,
                **YAML_IDS,
            }
        )
    )
    sizes = codec_config.scalar_config.to_dict()
    sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
    content = {"generator": {"config": {**sizes, "sample_rate": codec_config.sampling_rate}}}
    (folder / "sqcodec_config.yaml").write_text(yaml.safe_dump(content))
    (folder / "model_config.json").write_text(json.dumps(codec_config.flow_config.to_dict()))
    for name, part in (("whisper-medium", codec_config.whisper_config), ("wavlm", codec_config.wavlm_config)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(part.to_json_string(use_diff=False))
    write_tokenizer(folder / "tokenizer.json")


def write_random(path: Path, entry: str, layout: Mapping[str, torch.Tensor]) -> None:
    write_archive(path, entry, layout, lambda name: random_like(layout[name]), path.name)


def random_like(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool:
        return torch.ones(tensor.shape, dtype=torch.bool)
    if not tensor.dtype.is_floating_point:
        return torch.randint(1000, tensor.shape, dtype=tensor.dtype)
    bits = torch.empty(tensor.shape, dtype=torch.int16).random_(-(2**15), 2**15 - 1)
    bits.bitwise_and_(SIGN_AND_MANTISSA).bitwise_or_(EXPONENT)
    return bits.view(torch.bfloat16).to(tensor.dtype)


def write_tokenizer(path: Path) -> None:
    """The layout of Llama 3.2's: 128,000 ordinary tokens (made up here), then 256 slots."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordinary = [*alphabet, *(f"made-up-{index}" for index in range(LLAMA_BOS - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(ordinary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rest = LLAMA_VOCAB_SIZE - LLAMA_BOS - len(SLOTS)
    tokenizer.add_special_tokens([old for old, _ in SLOTS])
    tokenizer.add_special_tokens([f"<|reserved_special_token_{13 + index}|>" for index in range(rest)])
    tokenizer.save(str(path))


def is_same(one: Path, other: Path) -> bool:
    files = TorchFile(one, "model"), TorchFile(other, "model")
    if files[0].keys() != files[1].keys():
        return False
    for key in files[0]:
        values = [file[key] for file in files]
        if values[0].dtype != values[1].dtype or not torch.equal(*(value.view(torch.int16) for value in values)):
            return False
        for file in files:
            file.give_back_pages()
    return True


def largest_tensor(path: Path) -> float:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    return max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) / 1e9


def gigabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9, 2)


if __name__ == "__main__":
    main()
