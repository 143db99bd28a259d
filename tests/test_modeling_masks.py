"""Padding on any side, holes and empty rows: what the attention mask leaves out changes nothing."""

import hypothesis
import pytest
import torch
from hypothesis import strategies
from models import (
    BACK_ENDS,
    FORWARD_BACK_ENDS,
    LOW_PRECISION,
    build,
    draw_biases,
    gradients,
    masks,
    padded_batch,
    random_ids,
    worst,
)
from torch import nn
from transformers import AutoModel


DOUBLE_MODELS = {}


def cached_double_model(attention):
    """Hypothesis calls a test many times and resets no fixture in between."""
    if attention not in DOUBLE_MODELS:
        DOUBLE_MODELS[attention] = build(AutoModel, attention, dtype=torch.float64).requires_grad_(False)
    return DOUBLE_MODELS[attention]


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(length=strategies.integers(1, 30), left=strategies.integers(0, 40), right=strategies.integers(0, 40))
def test_padding_on_either_side_changes_nothing(length, left, right):
    ids = random_ids(1, length)
    padded = nn.functional.pad(ids, (left, right), value=3)
    mask = masks(left + length + right, slice(left, left + length))
    for attention in FORWARD_BACK_ENDS:
        model = cached_double_model(attention)
        alone = model(ids).last_hidden_state
        beside = model(padded, mask).last_hidden_state
        assert worst(beside[:, left : left + length], alone) < 1e-12
        assert torch.count_nonzero(beside[:, :left]) == torch.count_nonzero(beside[:, left + length :]) == 0


@pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
@pytest.mark.usefixtures("no_grad")
class TestMasks:
    def test_what_stands_in_a_hole_does_not_matter(self, attention):
        batch, model = padded_batch(), build(AutoModel, attention)
        hidden_states = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        other = torch.where(batch["attention_mask"].bool(), batch["input_ids"], random_ids(4, 24, seed=9))
        assert torch.equal(model(other, batch["attention_mask"]).last_hidden_state, hidden_states)

    def test_a_mask_of_ones_is_no_mask(self, attention):
        ids, model = random_ids(2, 9), build(AutoModel, attention)
        assert torch.equal(model(ids, torch.ones_like(ids)).last_hidden_state, model(ids).last_hidden_state)

    @pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.float32], ids=str)
    def test_a_mask_of_any_dtype_is_the_same(self, attention, mask_dtype):
        batch, model = padded_batch(), build(AutoModel, attention)
        expected = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        assert torch.equal(model(batch["input_ids"], batch["attention_mask"].to(mask_dtype))[0], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION], ids=str)
    def test_a_fully_masked_row_gives_zeros(self, attention, dtype):
        model = draw_biases(build(attention=attention, dtype=dtype))
        outputs = model(random_ids(3, 12), masks(12, slice(None), [], slice(0, 5)), output_hidden_states=True)
        assert torch.count_nonzero(outputs.hidden_states[-1][1]) == 0
        assert outputs.logits.isfinite().all()

    def test_a_batch_of_padding_alone_gives_zeros(self, attention):
        hidden_states = build(AutoModel, attention)(random_ids(2, 6), masks(6, [], [])).last_hidden_state
        assert hidden_states.shape[:2] == (2, 6) and not hidden_states.any()

    def test_a_fully_masked_row_leaves_the_others_alone(self, attention):
        model, ids = build(AutoModel, attention), random_ids(2, 12)
        both = model(ids, masks(12, slice(None), [])).last_hidden_state
        assert worst(both[:1], model(ids[:1]).last_hidden_state) < 1e-6

    def test_token_types_of_one_row_are_those_of_all(self, attention):
        batch, model = padded_batch(), build(AutoModel, attention)
        inputs, token_types = (batch["input_ids"], batch["attention_mask"]), (torch.arange(24) > 11).long()[None]
        expected = model(*inputs, token_type_ids=token_types.expand(4, -1)).last_hidden_state
        assert torch.equal(model(*inputs, token_type_ids=token_types).last_hidden_state, expected)

    def test_a_mask_of_another_shape_is_refused(self, attention):
        with pytest.raises(ValueError, match=r"attention_mask must be \(batch, length\) = \(2, 9\), is \(2, 8\)"):
            build(AutoModel, attention)(random_ids(2, 9), torch.ones(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION], ids=str)
@pytest.mark.parametrize("attention", BACK_ENDS)
def test_a_fully_masked_row_gives_finite_gradients(attention, dtype):
    model = draw_biases(build(attention=attention, dtype=dtype))
    ids, mask = random_ids(3, 12), masks(12, slice(None), [], slice(0, 5))
    model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
