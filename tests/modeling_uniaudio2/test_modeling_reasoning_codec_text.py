import subprocess
import sys

import pytest
import torch
from tiny_text_head import AUDIO_TOKEN_ID, make_parts, make_text_head
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from uniaudio2 import ReasoningCodecForConditionalGeneration

UNIT = 4800  # samples of a reasoning frame


@pytest.fixture
def model():
    return make_text_head()


def make_inputs(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise of the given lengths, each asked the same question, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    frames = [-(-length // UNIT) for length in lengths]
    input_ids = torch.zeros(len(lengths), max(frames) + 3, dtype=torch.long)
    input_values = torch.zeros(len(lengths), 1, max(lengths))
    padding_mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        prompt = torch.tensor([1, *[AUDIO_TOKEN_ID] * count, 7, 8])
        input_ids[row, -len(prompt) :] = prompt
        input_values[row, 0, :length] = 0.3 * torch.randn(length, generator=generator)
        padding_mask[row, :length] = True
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "input_values": input_values,
        "padding_mask": padding_mask,
    }


@torch.no_grad()
def test_what_is_heard_matters_and_codes_say_all_of_it(model):
    inputs = make_inputs(24000, 14000)
    heard = model(**inputs)
    other = model(**inputs | {"input_values": inputs["input_values"].flip(0) * 0.1})
    assert not torch.allclose(heard.logits, other.logits, atol=1e-3)

    codes = heard.reasoning_codes
    assert codes.shape == (2, 8, 6) and (codes[0, :, :5] >= 0).all() and (codes[1, :, 3:] == -1).all()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**text, reasoning_codes=codes).logits, heard.logits)


@torch.no_grad()
def test_codes_are_those_of_the_codec():
    codec, language_model = make_parts()
    model = ReasoningCodecForConditionalGeneration.from_parts(codec, language_model, AUDIO_TOKEN_ID)
    inputs = make_inputs(19200)
    expected = codec.encode(inputs["input_values"], encode_mode="exact").reasoning_codes
    assert torch.equal(model(**inputs).reasoning_codes, expected)


@torch.no_grad()
def test_a_projected_frame_stands_in_the_place_of_every_placeholder(model):
    inputs = make_inputs(24000, 14000)
    audio = model.extract_audio_features(inputs["input_values"], inputs["padding_mask"])
    branch = model.model.reasoning_branch(audio["whisper_features"], audio["music_features"], audio["reasoning_mask"])
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    for row in range(2):
        places = inputs["input_ids"][row] == AUDIO_TOKEN_ID
        frames = branch.quantized[row][audio["reasoning_mask"][row]]
        embeddings[row, places] = model.model.text_projection(frames)
    by_hand = model.lm_head(
        model.model.language_model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).last_hidden_state
    )
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**text, **audio).logits, by_hand)
    torch.testing.assert_close(model(**inputs).logits, by_hand)


def test_generate_hears_the_audio_once_and_answers_the_same_without_a_cache(model):
    inputs = make_inputs(24000, 14000)
    calls = []
    model.model.front_ends.register_forward_hook(lambda *_: calls.append(1))
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert len(calls) == 1
    assert torch.equal(answer, model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False))
    other = model.generate(**make_inputs(24000, 14000, seed=1), max_new_tokens=8, do_sample=False)
    assert not torch.equal(answer, other)


@pytest.mark.parametrize("strategy", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_stock_decoding_strategies_work(model, strategy):
    inputs = make_inputs(24000, 14000)
    answer = model.generate(**inputs, max_new_tokens=5, **strategy)
    assert answer.shape[0] == 2 * strategy.get("num_return_sequences", 1)


@torch.no_grad()
def test_padding_on_the_left_does_not_change_an_answer(model):
    inputs = make_inputs(24000, 24000)
    wider = {name: torch.nn.functional.pad(inputs[name], (4, 0)) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**inputs | wider).logits[:, 4:], model(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, ReasoningCodecForConditionalGeneration)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    inputs = make_inputs(24000)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.checkpoint
def test_without_the_package_the_saved_folder_is_enough(model, tmp_path):
    model.save_pretrained(tmp_path)
    program = (
        "import sys; sys.modules['uniaudio2'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "print(type(model).__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert shown.stdout.strip() == "ReasoningCodecForConditionalGeneration"


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_any_causal_language_model_can_be_joined(tied):
    codec, _ = make_parts()
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    language_model = Qwen2ForCausalLM(config).eval()
    model = ReasoningCodecForConditionalGeneration.from_parts(codec, language_model, AUDIO_TOKEN_ID)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    text = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=text).logits, language_model(input_ids=text).logits)
    assert model(**make_inputs(9600)).logits.shape[-1] == 50


def test_a_head_that_is_no_matrix_is_refused():
    codec, language_model = make_parts()
    language_model.lm_head = torch.nn.Linear(16, 40, bias=True)
    with pytest.raises(ValueError, match="without bias, cap or scale"):
        ReasoningCodecForConditionalGeneration.from_parts(codec, language_model, AUDIO_TOKEN_ID)


def test_the_trained_branch_goes_back_into_a_codec(model):
    codec, _ = make_parts()
    with torch.no_grad():
        model.model.reasoning_branch.query_token.add_(1.0)
    model.copy_reasoning_branch_to(codec)
    assert torch.equal(codec.reasoning_branch.query_token, model.model.reasoning_branch.query_token)
    inputs = make_inputs(19200)
    with torch.no_grad():
        expected = codec.encode(inputs["input_values"], encode_mode="exact").reasoning_codes
        assert torch.equal(model(**inputs).reasoning_codes, expected)


def test_the_loss_is_that_of_the_text_and_the_weighted_commitment(model):
    inputs = make_inputs(24000, 14000)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 7, -100)
    output = model.train()(**inputs, labels=labels)
    by_hand = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.text_loss, by_hand)
    assert output.commitment_loss > 0
    weight = model.config.commitment_loss_weight
    torch.testing.assert_close(output.loss, by_hand + weight * output.commitment_loss)


def test_codebooks_follow_the_batch_only_when_asked(model):
    inputs = make_inputs(24000)
    before = model.model.reasoning_branch.quantizer.codebooks.clone()
    model.train()(**inputs)
    assert torch.equal(before, model.model.reasoning_branch.quantizer.codebooks)
    model(**inputs, update_codebooks=True)
    assert not torch.equal(before, model.model.reasoning_branch.quantizer.codebooks)


def test_the_front_ends_stay_frozen_and_quiet(model):
    assert not any(module.training for module in model.train().model.front_ends.modules())
    assert not any(parameter.requires_grad for parameter in model.model.front_ends.parameters())


def test_placeholders_must_match_the_audio(model):
    inputs = make_inputs(24000)
    with pytest.raises(ValueError, match=r"once for every reasoning frame.*\[3\].*\[5\]"):
        model(**inputs | {"input_values": inputs["input_values"][..., :14400], "padding_mask": None})


def test_gpt2_calls_its_table_differently():
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = ReasoningCodecForConditionalGeneration.from_parts(make_parts()[0], GPT2LMHeadModel(config), AUDIO_TOKEN_ID)
    assert model._tied_weights_keys == {"lm_head.weight": "model.language_model.wte.weight"}
