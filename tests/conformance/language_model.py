"""The language model through transformers' common model tests."""

import unittest

import torch
from skips import skip_listed
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW, UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration, UniAudio2Model

# What the common tests find out from the tables of the library: which class is the bare model, without a loss.
AutoModel.register(UniAudio2Config, UniAudio2Model, exist_ok=True)
MODEL_MAPPING_NAMES[UniAudio2Config.model_type] = UniAudio2Model.__name__


class UniAudio2ModelTester:
    """A tiny model, and sequences in which audio frames follow text."""

    batch_size = 13
    seq_length = 7
    num_text_rows = 3
    is_training = True
    hidden_size = 32
    num_hidden_layers = 3
    num_attention_heads = 2
    vocab_size = 99
    num_codebooks = 4
    # Plain text, two-dimensional, is a form of input too: for tests that look ids up in one embedding table.
    text_only = False

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> UniAudio2Config:
        return UniAudio2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=32,
            num_hidden_layers=self.num_hidden_layers,
            num_understanding_layers=1,
            num_generation_layers=1,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            depth_decoder_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            num_codebooks=self.num_codebooks,
            # Together more than the text vocabulary: the test of resizing writes its last id into every stream.
            reasoning_vocab_size=60,
            reconstruction_vocab_size=60,
            reasoning_codebook_size=16,
            reconstruction_codebook_size=16,
            reasoning_bos_token_id=16,
            reasoning_eos_token_id=17,
            reasoning_pad_token_id=19,
            reconstruction_bos_token_id=16,
            reconstruction_eos_token_id=17,
            reconstruction_pad_token_id=19,
            audio_prompt_bos_token_id=20,
            audio_prompt_eos_token_id=21,
            bos_token_id=1,
            eos_token_id=2,
            text_pad_token_id=0,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[UniAudio2Config, dict]:
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        if self.text_only:
            ids, mask = ids_tensor(shape, self.vocab_size), random_attention_mask(shape)
            return config, {"input_ids": ids, "attention_mask": mask}
        is_text = torch.arange(self.seq_length) < self.num_text_rows
        text = ids_tensor([*shape, 1], self.vocab_size) * is_text[:, None]
        codes = ids_tensor([*shape, self.num_codebooks], config.audio_vocab_size) * ~is_text[:, None]
        return config, {
            "input_ids": torch.cat((codes, text), dim=-1),
            "attention_mask": random_attention_mask(shape),
            "mm_token_type_ids": torch.where(is_text, TEXT_ROW, AUDIO_ROW).repeat(self.batch_size, 1),
        }


@skip_listed("language_model")
class UniAudio2ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (UniAudio2Model, UniAudio2ForConditionalGeneration)
    # The tests of `generate` are not part of this suite.
    all_generative_model_classes = ()
    # The common test leaves this to models that are older than it.
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ("mm_token_type_ids",)

    def setUp(self):
        self.model_tester = UniAudio2ModelTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Overridden because labels are three-dimensional: the ids of each row where there is a loss, else -100."""
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels and model_class is UniAudio2ForConditionalGeneration:
            is_text = (inputs["mm_token_type_ids"] == TEXT_ROW)[..., None]
            is_text_stream = torch.arange(inputs["input_ids"].shape[-1]) == self.model_tester.num_codebooks
            inputs["labels"] = inputs["input_ids"].masked_fill(is_text != is_text_stream, -100)
        return inputs

    def test_inputs_embeds(self):
        """Overridden to use plain text: the embedding of a row of nine ids is not one look-up."""
        self.model_tester.text_only = True
        super().test_inputs_embeds()

    def test_inputs_embeds_matches_input_ids(self):
        """Overridden to use plain text: the embedding of a row of nine ids is not one look-up."""
        self.model_tester.text_only = True
        super().test_inputs_embeds_matches_input_ids()
