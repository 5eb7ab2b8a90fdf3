"""The yardstick: transformers' own Llama, through the common model tests."""

import unittest

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask


class LlamaModelTester:
    batch_size = 13
    seq_length = 7
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    num_key_value_heads = 2
    intermediate_size = 32
    vocab_size = 99

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LlamaConfig, dict]:
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "attention_mask": random_attention_mask(shape),
        }


class LlamaModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LlamaModel, LlamaForCausalLM)
    # The tests of `generate` are not part of this suite.
    all_generative_model_classes = ()

    def setUp(self):
        self.model_tester = LlamaModelTester(self)
