"""The language model against what the released code computed on tiny models (`llm_fixture_*`)."""

import json

import pytest
import torch
import torch.nn.functional as F
from numeric_fixtures import NumericFixture, assert_close, fixtures_folder, over_fixtures
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from uniaudio2.conversion.language_model import language_model_state_dict, original_language_model_state_dict
from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW, UniAudio2Config
from uniaudio2.modeling_uniaudio2.generation_uniaudio2 import sample_ids
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration


def stack_config(sizes: dict) -> dict:
    rope = sizes["rope_adjustments"]
    return {
        "hidden_size": sizes["n_embd"],
        "intermediate_size": sizes["intermediate_size"],
        "num_attention_heads": sizes["n_head"],
        "num_key_value_heads": sizes["n_query_groups"],
        "head_dim": sizes["head_size"],
        "rms_norm_eps": sizes["norm_eps"],
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": float(sizes["rope_base"]),
            "factor": float(rope["factor"]),
            "low_freq_factor": float(rope["low_freq_factor"]),
            "high_freq_factor": float(rope["high_freq_factor"]),
            "original_max_position_embeddings": rope["original_max_seq_len"],
        },
    }


def language_model_config(fixture: NumericFixture) -> UniAudio2Config:
    sizes = fixture.facts["config"]
    ids = sizes["ids"]
    layers = {name: sizes[name]["n_layer"] for name in ("understanding", "backbone", "generation", "decoder")}
    return UniAudio2Config(
        **stack_config(sizes["backbone"]),
        vocab_size=sizes["backbone"]["padded_vocab_size"],
        num_hidden_layers=layers["understanding"] + layers["backbone"] + layers["generation"],
        num_understanding_layers=layers["understanding"],
        num_generation_layers=layers["generation"],
        depth_decoder_config={**stack_config(sizes["decoder"]), "num_hidden_layers": layers["decoder"]},
        num_codebooks=sizes["num_codebooks"],
        reasoning_vocab_size=sizes["reason_card"],
        reconstruction_vocab_size=sizes["semantic_card"],
        # The codes are what lies below the special ids.
        reasoning_codebook_size=min(ids["reason_bos"], ids["reason_eos"]),
        reconstruction_codebook_size=min(ids["semantic_bos"], ids["semantic_eos"]),
        reasoning_bos_token_id=ids["reason_bos"],
        reasoning_eos_token_id=ids["reason_eos"],
        reasoning_pad_token_id=ids["reason_pad_token"],
        reconstruction_bos_token_id=ids["semantic_bos"],
        reconstruction_eos_token_id=ids["semantic_eos"],
        reconstruction_pad_token_id=ids["semantic_pad_token"],
        audio_prompt_bos_token_id=ids["audio_prompt_bos"],
        audio_prompt_eos_token_id=ids["audio_prompt_eos"],
        bos_token_id=sizes["text_bos"],
        eos_token_id=sizes["text_eos"],
        text_pad_token_id=sizes["text_pad"],
    )


def load_model(fixture: NumericFixture) -> UniAudio2ForConditionalGeneration:
    config = language_model_config(fixture)
    model = UniAudio2ForConditionalGeneration(config).eval()
    model.load_state_dict(language_model_state_dict(fixture.tensors("model."), config))
    return model


def rows(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ids and the release's nine-fold mask, with or without a batch, as our inputs."""
    ids, mask = ids.reshape(-1, *ids.shape[-2:]).long(), mask.reshape(-1, *mask.shape[-2:]) > 0
    return {
        "input_ids": ids,
        "mm_token_type_ids": torch.where(mask[..., 0], AUDIO_ROW, TEXT_ROW),
        "attention_mask": mask.any(dim=-1).long(),
    }


def training_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recorded batch of whole sequences with labels of the rows that have a loss."""
    ids, loss_mask = tensors["in.sequences"], tensors["in.loss_mask"].bool()
    return {**rows(ids, tensors["in.masks"]), "labels": torch.where(loss_mask, ids, -100)}


def all_frames_labelled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with a label on every row, because the release computes the codes of frames without loss too."""
    ids, mask = tensors["in.sequences"], tensors["in.masks"].bool()
    return {**rows(ids, mask), "labels": torch.where(mask, ids, -100)}


# --- Forward ---


@over_fixtures("llm_fixture", "model.", "in.sequences", "in.masks", "fwd.")
def test_forward(fixture):
    """Every recorded stage: what goes into and comes out of each stack, the heads' input and the logits."""
    tensors, model = fixture.tensors(), load_model(fixture)
    stack, config = model.model, model.config
    first_generation = config.num_hidden_layers - config.num_generation_layers
    stages = {}

    def keep(name: str, is_input: bool):
        def hook(module, args, output=None):
            value = args[0] if is_input else output
            stages[name] = value[:, : tensors["in.sequences"].shape[1] - 1] if name != "decoder_out" else value

        return hook

    for name, layer in {
        "understanding_in": stack.layers[0],
        "backbone_in": stack.layers[config.num_understanding_layers],
        "generation_in": stack.layers[first_generation],
    }.items():
        layer.register_forward_pre_hook(keep(name, is_input=True))
    for name, norm in {
        "understanding_out": stack.understanding_norm,
        "backbone_out": stack.cross_modal_norm,
        "generation_out": stack.generation_norm,
        "decoder_out": model.depth_decoder.norm,
    }.items():
        norm.register_forward_hook(keep(name, is_input=False))
    model.depth_decoder.projection.register_forward_hook(keep("decoder_in", is_input=False))

    with torch.no_grad():
        outputs = model(**all_frames_labelled(tensors), output_hidden_states=True)
    stages["h_final"] = outputs.hidden_states[-1][:, :-1]
    stages["text_logits"] = outputs.logits[:, :-1]
    stages["ci_logits"] = outputs.audio_logits
    recorded = {name.removeprefix("fwd."): value for name, value in tensors.items() if name.startswith("fwd.")}
    compared = recorded.keys() & stages.keys()
    assert compared >= recorded.keys() - {"choosed_label", "choosed_mask"}
    # What a stack makes of padding rows differs (the release attends to padding) and is thrown away by both.
    is_row = tensors["in.masks"][:, :-1].any(dim=-1)
    for name in sorted(compared):
        rows_compared = is_row if name in ("understanding_out", "backbone_out", "generation_out") else ...
        assert_close(stages[name][rows_compared], recorded[name][rows_compared])


@over_fixtures("llm_fixture", "model.", "in.sequences", "in.masks", "in.loss_mask")
def test_losses_and_metrics(fixture):
    tensors, model, recorded = fixture.tensors(), load_model(fixture), fixture.facts.get("losses", {})
    batch = training_rows(tensors)
    num_codebooks = model.config.num_codebooks
    with torch.no_grad():
        outputs, all_outputs = model(**batch), model(**all_frames_labelled(tensors))

    def compare(name: str, key: str, value: torch.Tensor) -> None:
        if key in recorded.get(name, {}):
            assert_close(value, torch.tensor(recorded[name][key]))

    def weighted(weights: list[float]) -> torch.Tensor:
        return (torch.tensor(weights) * outputs.codebook_losses[: len(weights)]).sum() / len(weights)

    targets, has_text_loss = batch["input_ids"][:, 1:, -1], batch["labels"][:, 1:, -1] != -100
    is_right = (outputs.logits[:, :-1].argmax(dim=-1) == targets) & has_text_loss
    for key in ("loss", "loss_text"):
        compare("text", key, outputs.text_loss)
    compare("text", "acc_text", is_right.sum() / has_text_loss.sum())

    # Frames that follow another row, in the order of batch, then time: those with a loss among all of them.
    is_audio = batch["mm_token_type_ids"][:, 1:] == AUDIO_ROW
    has_loss = (batch["labels"][:, 1:, :-1] != -100)[is_audio & batch["attention_mask"][:, 1:].bool()]
    codes = batch["input_ids"][:, 1:, :-1][is_audio & batch["attention_mask"][:, 1:].bool()]
    accuracies = (all_outputs.audio_logits.argmax(dim=-1) == codes).float().mean(dim=0)  # with loss or not
    for name in ("residual_w1x8", "residual_default_w3"):
        for codebook in range(num_codebooks):
            compare(name, f"loss_{codebook + 1}", outputs.codebook_losses[codebook])
            compare(name, f"acc_{codebook + 1}", accuracies[codebook])
    compare("residual_w1x8", "loss", outputs.audio_loss)
    compare("residual_w1x8", "loss", weighted([1.0] * num_codebooks))
    compare("residual_w22211111", "loss", weighted([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    compare("residual_default_w3", "loss", weighted([1.0, 1.0, 1.0]))
    # The same losses with the other normaliser of the released helpers: the frames that have a loss.
    first_loss = outputs.codebook_losses[0] * len(has_loss) / has_loss[:, 0].sum()
    for key in ("loss", "loss_0"):
        compare("zero_on_codebook0", key, first_loss)
    torch.testing.assert_close(outputs.loss, outputs.text_loss + outputs.audio_loss)


@over_fixtures("llm_fixture", "model.", "in.sequences", "in.masks", "in.loss_mask")
def test_gradients(fixture):
    """Of text loss plus audio loss with equal weights: all norms, and the gradients that are recorded whole."""
    tensors, model = fixture.tensors(), load_model(fixture)
    model(**training_rows(tensors)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = original_language_model_state_dict(gradients, model.config)
    norms = fixture.facts.get("losses", {}).get("grad_norms_of_text_plus_residual_w1x8", {})
    for name, norm in norms.items():
        assert_close(gradients[name].norm(), torch.tensor(norm))
    for name, gradient in fixture.tensors("grad.").items():
        assert_close(gradients[name], gradient)


@over_fixtures("llm_fixture", "model.")
def test_conversion_and_back(fixture):
    weights, config = fixture.tensors("model."), language_model_config(fixture)
    back = original_language_model_state_dict(language_model_state_dict(weights, config), config)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_names_of_the_released_checkpoint():
    """All tensors of the full-size model, with their shapes, on the meta device."""
    path = fixtures_folder() / "llm_keys.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    recorded = {name: torch.Size(shape) for name, (shape, _) in json.loads(path.read_text()).items()}
    config = UniAudio2Config.from_size("3b")
    with torch.device("meta"):
        model = UniAudio2ForConditionalGeneration(config)
    original = original_language_model_state_dict(model.state_dict(), config)
    assert {name: weight.shape for name, weight in original.items()} == recorded


# --- Generation ---

CACHES = pytest.mark.parametrize("cache_implementation", [None, "static"])


def check_audio(model, recorded: dict, prompt: dict, cache_implementation: str | None, **options) -> None:
    """Greedy frames, their logits and the states they were read from; and the codes, where the run came to its end."""
    samples = recorded["samples"][:, 1:]
    outputs = model.generate(
        **prompt,
        **options,
        generation_mode="audio",
        do_sample=False,
        max_new_tokens=len(samples),
        cache_implementation=cache_implementation,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
    )
    frames = outputs.sequences[0, prompt["input_ids"].shape[1] :, :-1]
    assert torch.equal(frames, samples[: len(frames)])
    # The release goes on to the number of frames asked for in some recordings; ours stops at the end frame.
    config = model.config
    end = config.reconstruction_eos_token_id + config.reasoning_vocab_size
    ends = (samples == end).all(dim=-1).nonzero()
    assert len(frames) == (int(ends[0]) + 1 if len(ends) > 0 else len(samples))

    guided = "guidance_scale" in options
    logits, states = torch.cat(outputs.logits), torch.stack([step[-1][:, -1] for step in outputs.hidden_states])
    if "ci_logits_mixed" in recorded or (not guided and "ci_logits" in recorded):
        assert_close(logits, recorded["ci_logits_mixed" if guided else "ci_logits"][: len(logits)])
    if "last_h" in recorded:
        assert_close(states if guided else states[:, 0], recorded["last_h"][: len(states)])
    if "prefill_h_final" in recorded:
        prefill = recorded["prefill_h_final"]
        assert_close(outputs.hidden_states[0][-1][:, : prefill.shape[1]], prefill)
    for codes, size, name in (
        (outputs.reasoning_codes[0], config.reasoning_codebook_size, "reason_returned"),
        (outputs.reconstruction_codes[0], config.reconstruction_codebook_size, "semantic_returned"),
    ):
        if name in recorded:  # the release returns malformed frames too
            returned = recorded[name]
            assert torch.equal(codes, returned[:, ((returned >= 0) & (returned < size)).all(dim=0)])


@CACHES
@over_fixtures("llm_fixture", "model.", "gen.tts.prompt_tokens", "gen.tts.prompt_mask", "gen.tts.samples")
def test_speech_from_text(fixture, cache_implementation):
    recorded = fixture.tensors("gen.tts.")
    prompt = rows(recorded["prompt_tokens"], recorded["prompt_mask"])
    check_audio(load_model(fixture), recorded, prompt, cache_implementation)


@CACHES
@over_fixtures("llm_fixture", "model.", "gen.tts.prompt_tokens", "gen.tts.prompt_mask", "gen.tts_cfg.samples")
def test_speech_with_guidance(fixture, cache_implementation):
    recorded, prompt = fixture.tensors("gen.tts_cfg."), fixture.tensors("gen.tts.prompt_")
    scale = float(fixture.facts["generation"]["cfg_scale"])
    prompt = rows(prompt["tokens"], prompt["mask"])
    check_audio(load_model(fixture), recorded, prompt, cache_implementation, guidance_scale=scale)


@over_fixtures("llm_fixture", "gen.tts.prompt_tokens", "gen.tts.prompt_mask", "gen.tts_cfg.uncond_tokens")
def test_unconditional_prompt(fixture):
    """All text becomes the text padding id, rows and masks stay."""
    prompt = rows(*(fixture.tensors("gen.tts.prompt_")[name] for name in ("tokens", "mask")))
    is_text = prompt["mm_token_type_ids"] == TEXT_ROW
    prompt["input_ids"][..., -1].masked_fill_(is_text, language_model_config(fixture).text_pad_token_id)
    assert torch.equal(prompt["input_ids"][0], fixture.tensors()["gen.tts_cfg.uncond_tokens"])


@over_fixtures("llm_fixture", "model.", "gen.tts.prompt_tokens", "gen.tts.prompt_mask", "gen.tts_forbid.samples")
def test_speech_with_reasoning_ids_forbidden(fixture):
    """Recorded with the reasoning ids forbidden from the first frame on; in `generate` they are after the switch."""
    recorded, model = fixture.tensors("gen.tts_forbid."), load_model(fixture)
    prompt = fixture.tensors("gen.tts.prompt_")
    forbidden = int(recorded["forbid_prefix"][0]) if "forbid_prefix" in recorded else model.config.reasoning_vocab_size

    def forbid(input_ids, scores):
        return scores.index_fill(1, torch.arange(forbidden), -torch.inf)

    processors = LogitsProcessorList([forbid])
    check_audio(model, recorded, rows(prompt["tokens"], prompt["mask"]), None, logits_processor=processors)


@CACHES
@over_fixtures("llm_fixture", "model.", "gen.asr.prompt_tokens", "gen.asr.prompt_mask", "gen.asr.text_ids")
def test_text_from_speech(fixture, cache_implementation):
    recorded, model = fixture.tensors("gen.asr."), load_model(fixture)
    text_ids = recorded["text_ids"]
    outputs = model.generate(
        **rows(recorded["prompt_tokens"], recorded["prompt_mask"]),
        max_new_tokens=len(text_ids),
        do_sample=False,
        cache_implementation=cache_implementation,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
    )
    answer, num_ids = outputs.sequences[0], len(outputs.logits)
    assert torch.equal(answer, text_ids[:num_ids])
    assert num_ids == len(text_ids) or answer[-1] == model.config.eos_token_id
    if "text_ids_returned" in recorded:  # without the stop id
        assert torch.equal(answer[answer != model.config.eos_token_id], recorded["text_ids_returned"])
    if "text_logits" in recorded:
        assert_close(torch.cat(outputs.logits), recorded["text_logits"][:num_ids])
    states = [step[-1] for step in outputs.hidden_states]
    if "last_h" in recorded:
        assert_close(torch.cat([state[:, -1] for state in states]), recorded["last_h"][:num_ids])
    if "prefill_h_final" in recorded:
        assert_close(states[0][:, : recorded["prefill_h_final"].shape[1]], recorded["prefill_h_final"])


@pytest.mark.parametrize("kind", ["tts", "asr"])
@over_fixtures("llm_fixture", "model.")
def test_logits_after_the_prefill(fixture, kind):
    """Text logits of the last row but one, which the release computes when it fills its caches."""
    recorded = fixture.tensors(f"gen.{kind}.")
    if {"prompt_tokens", "prompt_mask", "prefill_text_logits_last"} <= recorded.keys():
        with torch.no_grad():
            logits = load_model(fixture)(**rows(recorded["prompt_tokens"], recorded["prompt_mask"])).logits
        assert_close(logits[:, -2], recorded["prefill_text_logits_last"])


# --- Sampling ---


def process(logits: torch.Tensor, top_k: int, temperature: float, forbidden: int) -> torch.Tensor:
    """In the order of `generate`: forbidden ids, temperature, top-k."""
    logits = logits.masked_fill(torch.arange(logits.shape[-1]) < forbidden, -torch.inf)
    return TopKLogitsWarper(top_k)(None, TemperatureLogitsWarper(temperature)(None, logits))


@over_fixtures("llm_fixture", "sampler.logits")
def test_sampler(fixture):
    """The probabilities that are drawn from (ties with the k-th largest are kept), and seeded draws."""
    recorded, facts = fixture.tensors("sampler."), fixture.facts["sampler"]
    for index, case in enumerate(facts["cases"]):
        scores = process(recorded["logits"], case["topk"], case["temperature"], case["forbid_prefix"])
        if f"{index}.probs" in recorded:
            assert_close(F.softmax(scores, dim=-1), recorded[f"{index}.probs"])
        if f"{index}.draws" in recorded:
            draws = recorded[f"{index}.draws"]
            generator = torch.Generator().manual_seed(case["seed"])
            assert torch.equal(torch.stack([sample_ids(scores, generator) for _ in draws]), draws)
    if "text.probs" in recorded:
        scores = process(recorded["logits"], facts["text"]["topk"], facts["text"]["temperature"], 0)
        assert_close(F.softmax(scores, dim=-1), recorded["text.probs"])
