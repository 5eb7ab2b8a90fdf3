import pytest
import torch

from uniaudio2.conversion.flow_decoder import flow_decoder_key_table
from uniaudio2.conversion.key_table import rename_weights
from uniaudio2.conversion.music_encoder import music_encoder_key_table
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import MusicEncoderConfig
from uniaudio2.modeling_uniaudio2.modeling_flow_decoder import FlowDecoder1D
from uniaudio2.modeling_uniaudio2.modeling_music_encoder import MusicEncoder

WEIGHTS = {"old.a": torch.zeros(1), "old.b": torch.ones(1), "table": torch.ones(2)}


def test_every_weight_gets_its_new_name_or_is_dropped_by_name():
    renamed = rename_weights(WEIGHTS, {"old.a": "new.a", "old.b": "new.b"}, dropped=("table", "absent"))
    assert renamed == {"new.a": WEIGHTS["old.a"], "new.b": WEIGHTS["old.b"]}


def test_a_weight_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"1 missing \['old.c'\], 0 unexpected"):
        rename_weights(WEIGHTS, {"old.a": "a", "old.b": "b", "old.c": "c"}, dropped=("table",))


def test_a_weight_that_no_one_names_is_an_error():
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 unexpected \['table'\]"):
        rename_weights(WEIGHTS, {"old.a": "a", "old.b": "b"})


def test_the_flow_table_fills_the_whole_model():
    with torch.device("meta"):
        flow = FlowDecoder1D(num_layers=3)
    table = flow_decoder_key_table(num_layers=3)
    assert set(table.values()) == set(flow.state_dict()) and len(set(table.values())) == len(table)


def test_the_music_encoder_table_fills_the_whole_model():
    with torch.device("meta"):
        encoder = MusicEncoder(MusicEncoderConfig(num_hidden_layers=3))
    table = music_encoder_key_table(num_layers=3)
    assert set(table.values()) == set(encoder.state_dict()) and len(set(table.values())) == len(table)
