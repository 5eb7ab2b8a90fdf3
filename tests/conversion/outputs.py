"""What a converted folder computes, in a process of its own: `python outputs.py FOLDER INPUTS RESULTS`.

Inputs and results are safetensors files. The same function serves the models in memory as a reference.
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTextToWaveform, AutoProcessor

import uniaudio2  # noqa: F401  (registers the classes)


@torch.no_grad()
def compute(model, codec, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits of text and audio, greedy frames and text ids, codes of a clip and the waveform of given codes."""

    def beginning(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}

    forward = model(**beginning("forward."))
    results = {"text_logits": forward.logits[:, :-1], "audio_logits": forward.audio_logits}
    for task, mode in (("tts", "audio"), ("asr", "text")):
        prompt, length = beginning(f"{task}.prompt."), int(inputs[f"{task}.length"])
        answer = model.generate(**prompt, generation_mode=mode, do_sample=False, max_new_tokens=length)
        results[task] = answer[0, prompt["input_ids"].shape[1] :, :-1] if mode == "audio" else answer[0]
    encoded = codec.encode(inputs["wave"], encode_mode="exact", reference=True)
    results |= {"reasoning_codes": encoded.reasoning_codes, "reconstruction_codes": encoded.reconstruction_codes}
    results["audio"] = codec.decode(
        inputs["codes"],
        num_inference_steps=int(inputs["flow_steps"]),
        guidance_scale=1.5,
        noise=inputs["noise"],
        decode_mode="release",
        window_seconds=inputs["noise"].shape[2] / 25,
        reference=True,
    ).audio_values[:, 0]
    return {name: value.contiguous() for name, value in results.items()}


if __name__ == "__main__":
    folder, inputs_file, results_file = sys.argv[1:]
    loaded = AutoModelForTextToWaveform.from_pretrained(folder).eval()
    save_file(compute(loaded, AutoProcessor.from_pretrained(folder).codec, load_file(inputs_file)), results_file)
