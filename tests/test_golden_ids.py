"""Greedy answers to all tasks, the same on every machine and for ever.

The weights come from NumPy's frozen generator and the model computes in float64; the file says how far the best choice
was ahead of the second, which is far more than any rounding. After a change that is meant to alter the answers,
`UNIAUDIO2_WRITE_GOLDEN=1 pytest tests/test_golden_ids.py -k write` writes the file again.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from uniaudio2 import TASKS
from uniaudio2.commands.tasks import given_fields

GOLDEN = Path(__file__).with_suffix(".json")
NUM_ROWS = 6


def fixed_model(model):
    """The same architecture with weights that depend on nothing but their order and shape."""
    random = np.random.RandomState(0)
    fixed = type(model)(model.config).eval().double()
    with torch.no_grad():
        for name, parameter in sorted(fixed.named_parameters()):
            values = random.standard_normal(parameter.shape)
            is_norm = name.endswith("norm.weight")
            parameter.copy_(torch.from_numpy(1 + 0.1 * values if is_norm else 0.3 * values))
    return fixed


def fixed_values(task):
    random = np.random.RandomState(1)
    return {
        name: "seven three nine"
        if task.is_text(name)
        else tuple(torch.from_numpy(random.randint(size, size=(8, length))) for size, length in ((16, 3), (32, 8)))
        for name in given_fields(task)
    }


def answer(processor, model, name):
    """The rows of the prompt, counted, and the greedy answer with its smallest margin."""
    inputs = processor(task=name, **fixed_values(TASKS[name]))
    output = model.generate(
        **inputs, max_new_tokens=NUM_ROWS, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    best = torch.stack(output.scores).topk(2).values
    is_text = TASKS[name].output == "text"
    ids = output.sequences[0] if is_text else output.sequences[0, -len(output.scores) :, :-1]
    return {
        "num_prompt_rows": inputs["input_ids"].shape[1],
        "ids": ids.tolist(),
        "margin": float((best[..., 0] - best[..., 1]).min()),
    }


@pytest.fixture(scope="module")
def fixed(model):
    return fixed_model(model)


@pytest.mark.parametrize("name", TASKS)
def test_greedy_answers_stay_what_they_are(processor, fixed, name):
    golden = json.loads(GOLDEN.read_text())[name]
    found = answer(processor, fixed, name)
    assert found["margin"] > 1e-4 and golden["margin"] == pytest.approx(found["margin"], rel=0.1)
    assert found["num_prompt_rows"] == golden["num_prompt_rows"]
    assert found["ids"] == golden["ids"]


@pytest.mark.skipif("UNIAUDIO2_WRITE_GOLDEN" not in os.environ, reason="only writes the file")
def test_write_the_golden_ids(processor, fixed):
    lines = (f'"{name}": {json.dumps(answer(processor, fixed, name))}' for name in TASKS)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
