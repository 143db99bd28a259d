"""Weights cast together: the same numbers as autocast's.

pytest tests/test_casts.py
"""

from argparse import Namespace

import pytest
import torch
from models import build, gradients, random_ids
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

from dnabert2.casts import cast_weights
from dnabert2.classifiers import add_adapter
from dnabert2.gue_arguments import LORA_TARGETS


class Casts(TorchDispatchMode):
    """Counts the casts of single tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("low_precision", [False, True])
def test_loss_and_gradients_are_those_of_autocast_bit_for_bit(low_precision, use_lora):
    model = build(AutoModelForSequenceClassification, low_precision_layernorm=low_precision)
    if use_lora:
        lora = {"lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": LORA_TARGETS}
        model = add_adapter(model, Namespace(model_name_or_path=".", **lora)).eval()
    batch = {"input_ids": random_ids(3, 9), "labels": torch.tensor([0, 1, 1])}
    found = []
    for together in (False, True):
        model.zero_grad()
        with Casts() as casts:
            weights = cast_weights(model, torch.bfloat16) if together else {}
            parameters = dict(model.named_parameters())  # of what is frozen no gradient is to be computed
            assert all(weight.requires_grad == parameters[name].requires_grad for name, weight in weights.items())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = torch.func.functional_call(model, weights, (), batch).loss
            loss.backward()
        found.append((loss, gradients(model), casts.count))
    (expected_loss, expected, many), (loss, ours, few) = found
    assert loss == expected_loss and few < many / 2
    for name, gradient in expected.items():
        assert (gradient is None) == (ours[name] is None), name
        assert gradient is None or (torch.equal(ours[name], gradient) and ours[name].dtype == torch.float32), name
