import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import AUDIO_ROW, UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration, UniAudio2Model

# --- Sizes ---


@pytest.mark.parametrize(("size", "num_parameters"), [("1b", 2_453_123_072), ("3b", 4_863_493_120)])
def test_number_of_parameters(size, num_parameters):
    with torch.device("meta"):
        model = UniAudio2ForConditionalGeneration(UniAudio2Config.from_size(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


# --- What the stack computes ---


def llama_config(config, num_layers: int) -> LlamaConfig:
    """A Llama with the sizes of the stack."""
    names = (
        "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim rms_norm_eps "
        "rope_parameters max_position_embeddings"
    )
    return LlamaConfig(**{name: getattr(config, name) for name in names.split()}, num_hidden_layers=num_layers)


def as_llama(model, layers, norm) -> LlamaModel:
    """Some layers of the stack and their norm as a model of transformers' own."""
    llama = LlamaModel(llama_config(model.config, len(layers))).to(model.dtype).eval()
    for theirs, ours in zip(llama.layers, layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    llama.norm.load_state_dict(norm.state_dict())
    return llama


@torch.no_grad()
def test_hidden_states_are_those_of_three_llamas(make_language_model, make_rows):
    """In float64, the formula of the stack with three `LlamaModel`s instead of ours."""
    model = make_language_model(num_hidden_layers=6, num_understanding_layers=2, num_generation_layers=1).double()
    stack = model.model
    rows = make_rows("ttaattaaat")
    is_audio = (rows["mm_token_type_ids"] == AUDIO_ROW)[..., None]
    tables = stack.audio_embeddings.weight.view(8, model.config.audio_vocab_size, -1)
    audio_embeds = sum(tables[k][rows["input_ids"][..., k]] for k in range(8))
    text_embeds = stack.embed_tokens.weight[rows["input_ids"][..., -1]]

    understanding = as_llama(model, stack.layers[:2], stack.understanding_norm)
    cross_modal = as_llama(model, stack.layers[2:5], stack.cross_modal_norm)
    generation = as_llama(model, stack.layers[5:], stack.generation_norm)
    understood = understanding(inputs_embeds=audio_embeds * is_audio).last_hidden_state
    merged = cross_modal(inputs_embeds=torch.where(is_audio, understood, text_embeds)).last_hidden_state
    generated = generation(inputs_embeds=merged * is_audio).last_hidden_state
    expected = torch.where(is_audio, generated, merged)

    torch.testing.assert_close(stack(**rows).last_hidden_state, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_without_experts_it_is_one_llama(make_language_model, make_rows):
    """The paper's ablation: no layers and no norms of their own for audio rows."""
    model = make_language_model(num_understanding_layers=0, num_generation_layers=0)
    rows = make_rows("ttaataaa")
    llama = as_llama(model, model.model.layers, model.model.cross_modal_norm)
    expected = llama(inputs_embeds=model.model.embed_rows(**rows)).last_hidden_state
    assert torch.equal(model.model(**rows).last_hidden_state, expected)


@torch.no_grad()
def test_text_alone_is_llama(language_model):
    """Bit for bit, whether the ids come with or without the audio streams."""
    ids = torch.randint(64, (2, 9))
    stack = language_model.model
    llama = LlamaForCausalLM(llama_config(language_model.config, 2)).eval()
    llama.model = as_llama(language_model, stack.layers[1:3], stack.cross_modal_norm)
    llama.model.embed_tokens, llama.lm_head = stack.embed_tokens, language_model.lm_head
    expected = llama(ids).logits
    rows = F.pad(ids[..., None], (8, 0))
    assert torch.equal(language_model(ids).logits, expected)
    assert torch.equal(language_model(rows, mm_token_type_ids=torch.zeros_like(ids)).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_item_equals_the_item_alone(make_language_model, make_rows, batch_rows, side, attn_implementation):
    model = make_language_model(attn_implementation=attn_implementation)
    items = [make_rows("tttaaat", seed=1), make_rows("aat", seed=2), make_rows("tttttaaaatt", seed=3)]
    batch = batch_rows(*items, side=side)
    logits = model(**batch).logits
    for item, item_logits, mask in zip(items, logits, batch["attention_mask"].bool(), strict=True):
        torch.testing.assert_close(item_logits[mask], model(**item).logits[0], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_padding_and_inactive_streams_may_hold_anything(language_model, make_rows, batch_rows):
    items = [make_rows("ttaa", seed=1), make_rows("t", seed=2)]
    rubbish = batch_rows(*items, padding_id=10**6)
    is_audio = rubbish["mm_token_type_ids"] == AUDIO_ROW
    rubbish["input_ids"][..., -1][is_audio] = 10**6
    rubbish["input_ids"][..., :-1][~is_audio] = -7
    assert torch.equal(language_model(**rubbish).logits, language_model(**batch_rows(*items)).logits)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_row_by_row_with_a_cache_equals_all_at_once(language_model, make_rows, batch_rows, cache):
    config = language_model.config
    batch = batch_rows(make_rows("ttaaata", seed=1), make_rows("aatt", seed=2))
    length = batch["attention_mask"].shape[1]
    expected = language_model(**batch).logits
    past_key_values = DynamicCache(config=config) if cache == "dynamic" else StaticCache(config, max_cache_len=length)
    assert len(past_key_values.layers) == config.num_hidden_layers
    for row in range(length):
        logits = language_model(
            input_ids=batch["input_ids"][:, row : row + 1],
            mm_token_type_ids=batch["mm_token_type_ids"][:, row : row + 1],
            attention_mask=batch["attention_mask"][:, : row + 1],
            past_key_values=past_key_values,
            use_cache=True,
        ).logits
        is_row = batch["attention_mask"][:, row].bool()
        torch.testing.assert_close(logits[is_row, 0], expected[is_row, row], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_embedded_rows_instead_of_ids(language_model, make_rows):
    rows = make_rows("taat")
    embeds = language_model.model.embed_rows(rows["input_ids"], rows["mm_token_type_ids"])
    expected = language_model(**rows).logits
    outputs = language_model(inputs_embeds=embeds, mm_token_type_ids=rows["mm_token_type_ids"])
    assert torch.equal(outputs.logits, expected)


@torch.no_grad()
def test_hidden_states_and_attentions_of_the_whole_stack(make_language_model, make_rows):
    model = make_language_model(attn_implementation="eager")
    outputs = model(**make_rows("ttaa"), output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 5 and len(outputs.attentions) == 4
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    assert torch.equal(model(**make_rows("ttaa"), return_dict=False)[0], outputs.logits)
    torch.testing.assert_close(model(**make_rows("ttaa"), logits_to_keep=1).logits, outputs.logits[:, -1:])


def test_row_kinds_are_required(language_model, make_rows):
    rows = make_rows("ta")
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        language_model(rows["input_ids"])
    with pytest.raises(ValueError, match="exactly one"):
        language_model(**rows, inputs_embeds=torch.zeros(1, 2, 32))


# --- Losses ---


@torch.no_grad()
def codebook_losses_one_by_one(model, rows, frames: list[int], num_audio_rows: int) -> torch.Tensor:
    """The depth decoder without the parallelism of teacher forcing: one run for every frame and codebook."""
    hidden_states = model.model(rows["input_ids"], rows["attention_mask"], mm_token_type_ids=rows["mm_token_type_ids"])
    losses = torch.zeros(8)
    for frame in frames:
        known = [hidden_states.last_hidden_state[0, frame - 1]]
        for codebook in range(8):
            state = model.depth_decoder(torch.stack(known)[None]).last_hidden_state[0, -1]
            code = rows["input_ids"][0, frame, codebook]
            losses[codebook] += F.cross_entropy(state @ model.audio_head.weight[codebook], code)
            known.append(model.model.audio_embeddings.weight[code + codebook * model.config.audio_vocab_size])
    return losses / num_audio_rows


@torch.no_grad()
def test_losses_by_hand(make_language_model, make_rows, label_rows):
    """Audio that is only read (the first two frames) counts in the normaliser of the audio loss and has no loss."""
    weights = (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    model = make_language_model(text_loss_weight=1.6, codebook_loss_weights=weights)
    rows = label_rows(make_rows("taattaaat"), "...xxxx.x")
    outputs = model(**rows)

    logits, text = outputs.logits[0], rows["input_ids"][0, :, -1]
    text_loss = torch.stack([F.cross_entropy(logits[row - 1], text[row]) for row in (3, 4, 8)]).mean()
    codebook_losses = codebook_losses_one_by_one(model, rows, frames=[5, 6], num_audio_rows=5)
    audio_loss = (torch.tensor(weights) * codebook_losses).sum() / 8
    torch.testing.assert_close(outputs.text_loss, text_loss)
    torch.testing.assert_close(outputs.codebook_losses, codebook_losses)
    torch.testing.assert_close(outputs.audio_loss, audio_loss)
    torch.testing.assert_close(outputs.loss, 1.6 * text_loss + audio_loss)
    assert outputs.audio_logits.shape == (2, 8, model.config.audio_vocab_size)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_do_not_see_padding(language_model, make_rows, label_rows, batch_rows, side):
    """In a batch of two the sums and the normalisers add up, on whichever side the shorter one is padded."""
    items = [label_rows(make_rows("aattaaat", seed=1), "..xx.xxx"), label_rows(make_rows("taa", seed=2), ".xx")]
    num_text, num_audio = torch.tensor([3.0, 0.0]), torch.tensor([4.0, 2.0])
    alone = [language_model(**item) for item in items]
    batch = language_model(**batch_rows(*items, side=side))
    text_losses = torch.stack([outputs.text_loss for outputs in alone])
    audio_losses = torch.stack([outputs.audio_loss for outputs in alone])
    torch.testing.assert_close(batch.text_loss, (text_losses * num_text).sum() / num_text.sum())
    torch.testing.assert_close(batch.audio_loss, (audio_losses * num_audio).sum() / num_audio.sum())


@torch.no_grad()
def test_packed_sequences_have_the_losses_of_the_sequences(language_model, make_rows, label_rows):
    items = [label_rows(make_rows("taat", seed=1), ".xxx"), label_rows(make_rows("aatta", seed=2), "xxxxx")]
    alone = [language_model(**item) for item in items]
    packed = {key: torch.cat([item[key] for item in items], dim=1) for key in items[0]}
    packed["attention_mask"] = None
    packed["position_ids"] = torch.tensor([[*range(4), *range(5)]])
    outputs = language_model(**packed, use_cache=False)
    text = (1 * alone[0].text_loss + 2 * alone[1].text_loss) / 3
    audio = (2 * alone[0].audio_loss + 2 * alone[1].audio_loss) / 4
    torch.testing.assert_close(outputs.text_loss, text)
    torch.testing.assert_close(outputs.audio_loss, audio)


@pytest.mark.parametrize("kinds", ["tttt", "aaaa"])
def test_a_batch_without_text_or_audio_has_no_such_loss(language_model, make_rows, label_rows, kinds):
    """Zero and not NaN; every parameter still gets a gradient, so that processes that train together stay in step."""
    outputs = language_model(**label_rows(make_rows(kinds), "xxxx"))
    missing, present = (
        (outputs.audio_loss, outputs.text_loss) if kinds[0] == "t" else (outputs.text_loss, outputs.audio_loss)
    )
    assert missing == 0 and present > 0
    outputs.loss.backward()
    for name, parameter in language_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_plain_text_labels(language_model):
    ids = torch.randint(60, (2, 6))
    outputs = language_model(ids, labels=ids)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.audio_loss is None


# --- Training ---


def test_activation_checkpointing_changes_no_gradient(make_language_model, make_rows, label_rows):
    rows = label_rows(make_rows("ttaaat"), ".xxxxx")
    gradients = []
    for checkpointing in (False, True):
        model = make_language_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**rows).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_trainer_trains_evaluates_and_predicts(language_model, make_rows, label_rows, batch_rows, tmp_path):
    dataset = [
        label_rows(make_rows(kinds, seed), "." + "x" * (len(kinds) - 1))
        for seed, kinds in enumerate(["ttaaa", "aattt", "ttt", "taaaaaa"] * 2)
    ]
    trainer = Trainer(
        model=language_model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=12,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=3,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=lambda items: batch_rows(*items, side="right"),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    predictions = trainer.predict(dataset)
    assert predictions.predictions.shape == (8, 7, 64) and predictions.label_ids.shape == (8, 7, 9)


def test_lora_on_all_linear_layers_with_the_heads_saved(make_language_model, make_rows, label_rows, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    rows = label_rows(make_rows("ttaaat"), ".xxxxx")
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head", "audio_head"])
    model = get_peft_model(make_language_model(), config)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 7 * (4 + 2) + 1  # seven in each layer of both stacks, and the projection between them

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(**rows).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    model = model.eval()
    loaded = PeftModel.from_pretrained(make_language_model(), tmp_path).eval()
    with torch.no_grad():
        expected, outputs = model(**rows), loaded(**rows)
        assert not torch.allclose(expected.loss, make_language_model()(**rows).loss)
    assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.audio_logits, expected.audio_logits)
    rows.pop("labels")
    sequences = loaded.generate(**rows, generation_mode="audio", max_new_tokens=3)
    assert torch.equal(sequences, model.generate(**rows, generation_mode="audio", max_new_tokens=3))


# --- Saving and loading ---


def test_saved_in_shards_and_loaded(language_model, make_rows, tmp_path):
    language_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded, info = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in language_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    rows = make_rows("taat")
    assert torch.equal(loaded(**rows).logits, language_model(**rows).logits)


@pytest.mark.parametrize("kwargs", [{}, {"dtype": torch.bfloat16}, {"device_map": {"": "cpu"}}])
def test_buffers_are_those_of_a_new_model(language_model, tmp_path, kwargs):
    """Buffers that are not saved come out of `from_pretrained` as uninitialised memory unless they are set again."""
    language_model.save_pretrained(tmp_path)
    loaded = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path, **kwargs)
    buffers = dict(loaded.named_buffers())
    assert len(buffers) == 4  # two frequency tables in each stack
    for name, buffer in language_model.named_buffers():
        assert torch.equal(buffers[name], buffer), name


@torch.no_grad()
def test_bfloat16_stays_near(language_model, make_rows, label_rows, tmp_path):
    language_model.save_pretrained(tmp_path)
    loaded = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    rows = label_rows(make_rows("ttaat"), ".xxxx")
    outputs = loaded(**rows)
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.loss, language_model(**rows).loss, rtol=0.05, atol=0.05)


def test_a_folder_with_missing_or_mismatched_tensors_is_refused(language_model, tmp_path):
    weights = language_model.state_dict()
    language_model.save_pretrained(tmp_path, state_dict={k: v for k, v in weights.items() if k != "audio_head.weight"})
    with pytest.raises(ValueError, match=r"audio_head\.weight is missing"):
        UniAudio2ForConditionalGeneration.from_pretrained(tmp_path)
    weights["audio_head.weight"] = weights["audio_head.weight"][..., :-1].contiguous()
    language_model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"audio_head\.weight has shape \(8, 24, 47\) and not \(8, 24, 48\)"):
        UniAudio2ForConditionalGeneration.from_pretrained(tmp_path)
    loaded = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.lm_head.weight, language_model.lm_head.weight)


def test_heads_start_new_on_a_checkpoint_of_the_bare_model(language_model, tmp_path):
    """Weights that the checkpoint does not claim to have are initialised, as anywhere in transformers."""
    language_model.model.save_pretrained(tmp_path)
    loaded, info = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert "lm_head.weight" in info["missing_keys"]
    assert 0.1 < loaded.audio_head.weight.std() < 0.3  # initializer_range is 0.2
    assert torch.equal(loaded.model.embed_tokens.weight, language_model.model.embed_tokens.weight)
    bare = UniAudio2Model.from_pretrained(tmp_path)
    assert torch.equal(bare.layers[0].mlp.up_proj.weight, language_model.model.layers[0].mlp.up_proj.weight)


@torch.no_grad()
def test_resized_vocabulary(language_model, make_rows):
    rows = make_rows("taat")
    expected = language_model(**rows).logits
    language_model.resize_token_embeddings(80)
    assert language_model.config.vocab_size == 80
    logits = language_model(**rows).logits
    assert logits.shape[-1] == 80
    torch.testing.assert_close(logits[..., :64], expected)


# --- Ways to run it ---


@torch.no_grad()
@pytest.mark.parametrize("name", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])  # flex compiles
def test_attention_implementations_agree(make_language_model, make_rows, label_rows, name):
    rows = label_rows(make_rows("ttaaat"), ".xxxxx")
    # Heads as wide as those of the shipped checkpoint: over 8 positions of heads 8 or 16 wide the code that torch 2.13
    # compiles for flex attention on processors with AVX2 computes something else (seen with torch alone).
    depth = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "initializer_range": 0.2,
    }
    model = make_language_model(attn_implementation="sdpa", depth_decoder_config=depth)
    expected = model(**rows)
    model.set_attn_implementation(name)
    assert model.depth_decoder.config._attn_implementation == name
    outputs = model(**rows)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(outputs.audio_logits, expected.audio_logits, rtol=1e-4, atol=2e-5)


def test_flash_attention_is_not_refused():
    assert UniAudio2ForConditionalGeneration._supports_flash_attn


@torch.no_grad()
def test_decode_step_compiles_into_one_graph(make_language_model, make_rows, batch_rows):
    model = make_language_model(num_hidden_layers=3)
    batch = batch_rows(make_rows("ttaa", seed=1), make_rows("ta", seed=2))
    caches = [StaticCache(model.config, max_cache_len=8) for _ in range(2)]
    for cache in caches:
        model(**batch, past_key_values=cache, use_cache=True)
    step = make_rows("a", seed=3)
    step = {
        "input_ids": step["input_ids"].expand(2, -1, -1),
        "mm_token_type_ids": step["mm_token_type_ids"].expand(2, -1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1),
    }
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    expected = model(**step, past_key_values=caches[0], use_cache=True).logits
    logits = compiled(**step, past_key_values=caches[1], use_cache=True).logits
    torch.testing.assert_close(logits, expected)


def test_tied_text_embedding_if_the_config_says_so(make_language_model):
    assert make_language_model().lm_head.weight is not make_language_model().model.embed_tokens.weight
    tied = make_language_model(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_models_can_be_copied(language_model, make_rows):
    copied = copy.deepcopy(language_model)
    assert torch.equal(copied(**make_rows("ta")).logits, language_model(**make_rows("ta")).logits)
