"""Sequences packed into one row by `cu_seqlens`, and padding taken out of a batch: only where tokens stand changes."""

import hypothesis
import pytest
import torch
from hypothesis import strategies
from models import (
    BACK_ENDS,
    FORWARD_BACK_ENDS,
    TINY,
    build,
    gradients,
    masks,
    padded_batch,
    random_ids,
    remote_module,
    worst,
)
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification


LENGTHS = [5, 1, 12, 7]
DOUBLE_MODELS = {}


def cached_double_model(attention):
    """Hypothesis calls a test many times and resets no fixture in between."""
    if attention not in DOUBLE_MODELS:
        DOUBLE_MODELS[attention] = build(AutoModel, attention, dtype=torch.float64).requires_grad_(False)
    return DOUBLE_MODELS[attention]


def ends(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed_and_padded(**labels):
    """The same sequences packed and padded, with token types and `labels` of the packed tokens."""
    ids = random_ids(1, sum(LENGTHS))
    packed = {"input_ids": ids, "token_type_ids": ids % 2, **labels}
    padded = {
        key: nn.utils.rnn.pad_sequence(tensor[0].split(LENGTHS), True, -100 if key == "labels" else 1)
        for key, tensor in packed.items()
    }
    mask = masks(max(LENGTHS), *(slice(0, length) for length in LENGTHS))
    return packed | {"cu_seqlens": ends(*LENGTHS)}, padded | {"attention_mask": mask}


# --- packed input ------------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(lengths=strategies.lists(strategies.integers(1, 20), min_size=1, max_size=6))
def test_packed_sequences_equal_each_alone(lengths):
    ids = random_ids(1, sum(lengths))
    for attention in FORWARD_BACK_ENDS:
        packed = cached_double_model(attention)(ids, token_type_ids=ids % 2, cu_seqlens=ends(*lengths))
        assert packed.last_hidden_state.shape[:2] == ids.shape and len(packed.pooler_output) == len(lengths)
        for i, (part, of_part) in enumerate(
            zip(ids.split(lengths, dim=1), packed.last_hidden_state.split(lengths, dim=1), strict=True)
        ):
            alone = cached_double_model("eager")(part, token_type_ids=part % 2)
            assert worst(of_part, alone.last_hidden_state) < 1e-12
            assert worst(packed.pooler_output[i], alone.pooler_output[0]) < 1e-12


class TestPackedInput:
    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
    @torch.no_grad()
    def test_what_stands_in_another_sequence_does_not_matter(self, attention):
        ids, model = random_ids(1, 16), build(AutoModel, attention)
        other = torch.cat([random_ids(1, 9, seed=8), ids[:, 9:]], dim=1)
        first, second = (model(row, cu_seqlens=ends(9, 7)).last_hidden_state for row in (ids, other))
        assert torch.equal(first[:, 9:], second[:, 9:]) and not torch.equal(first[:, :9], second[:, :9])

    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
    @torch.no_grad()
    def test_one_sequence_is_an_ordinary_row(self, attention):
        ids, model = random_ids(1, 9), build(AutoModel, attention)
        assert worst(model(ids, cu_seqlens=ends(9)).last_hidden_state, model(ids).last_hidden_state) < 1e-6

    def test_a_larger_max_seqlen_changes_nothing(self):
        ids, model = random_ids(1, 16), build(AutoModel)
        expected = model(ids, cu_seqlens=ends(9, 7)).last_hidden_state
        for max_seqlen in (9, 1000):
            hidden_states = model(ids, cu_seqlens=ends(9, 7), max_seqlen=max_seqlen).last_hidden_state
            assert torch.equal(hidden_states, expected)

    def test_embeddings_equal_ids(self):
        ids, model = random_ids(1, 16), build(AutoModel)
        expected = model(ids, cu_seqlens=ends(9, 7)).last_hidden_state
        embeddings = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeddings, cu_seqlens=ends(9, 7)).last_hidden_state, expected)

    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
    @torch.no_grad()
    def test_a_classifier_gives_every_sequence_its_logits(self, attention):
        packed, padded = packed_and_padded()
        labels, model = torch.tensor([0, 2, 1, 2]), build(AutoModelForSequenceClassification, attention, num_labels=3)
        ours, expected = (model(**batch, labels=labels) for batch in (packed, padded))
        assert ours.logits.shape == (len(LENGTHS), 3)
        assert worst(ours.logits, expected.logits) < 1e-5
        assert worst(ours.loss, expected.loss) < 1e-6

    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
    @torch.no_grad()
    def test_token_classification_equals_the_padded_batch(self, attention):
        packed, padded = packed_and_padded(labels=random_ids(1, sum(LENGTHS), seed=4) % 3)
        model = build(AutoModelForTokenClassification, attention, num_labels=3)
        ours, expected = model(**packed), model(**padded)
        assert worst(ours.logits[0], expected.logits[padded["attention_mask"].bool()]) < 1e-5
        assert worst(ours.loss, expected.loss) < 1e-6

    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_mlm_loss_and_gradients_equal_the_padded_batch(self, attention):
        labels = random_ids(1, sum(LENGTHS), seed=4).masked_fill(random_ids(1, sum(LENGTHS), seed=5) % 3 > 0, -100)
        results = []
        for batch in packed_and_padded(labels=labels):
            model = build(attention=attention)
            loss = model(**batch).loss
            loss.backward()
            results.append((loss, gradients(model)))
        (loss, ours), (expected_loss, expected) = results
        assert worst(loss, expected_loss) < 1e-6
        for name, gradient in expected.items():
            assert worst(ours[name], gradient) < 1e-5, name


class TestPackedInputIsRefused:
    def refused(self, match, shape=(1, 9), **inputs):
        with pytest.raises(ValueError, match=match):
            build(AutoModel)(random_ids(*shape), **inputs)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
    def test_with_cu_seqlens_of_another_dtype(self, dtype):
        self.refused("cu_seqlens must be int32", cu_seqlens=ends(4, 5).to(dtype))

    @pytest.mark.parametrize("cu_seqlens", [[[0, 4, 9]], [0], []])
    def test_with_cu_seqlens_of_another_shape(self, cu_seqlens):
        self.refused(r"of shape \(sequences \+ 1,\)", cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32))

    @pytest.mark.parametrize("cu_seqlens", [[1, 9], [0, 8], [0, 10], [0, 6, 4, 9], [0, 4, 4, 9], [0, 0, 9], [0, 9, 9]])
    def test_with_cu_seqlens_that_do_not_rise_from_0_to_the_number_of_tokens(self, cu_seqlens):
        self.refused(
            "must rise from 0 to 9, the number of tokens", cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32)
        )

    def test_with_more_than_one_row(self):
        self.refused(r"input_ids of \(1, tokens\), not \(2, 9\)", shape=(2, 9), cu_seqlens=ends(4, 5))

    def test_with_an_attention_mask(self):
        mask = torch.ones(1, 9, dtype=torch.long)
        self.refused("cu_seqlens or attention_mask, not both", attention_mask=mask, cu_seqlens=ends(4, 5))

    def test_with_a_max_seqlen_below_the_longest(self):
        self.refused("max_seqlen is 4, but the longest", cu_seqlens=ends(4, 5), max_seqlen=4)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, where a CUDA graph is recorded: reading its values would break that."""

    is_cuda = True

    def tolist(self):
        raise AssertionError("it was read")


def test_while_a_cuda_graph_is_recorded_the_values_of_cu_seqlens_are_not_read(monkeypatch):
    check_packed = remote_module(cached_double_model("eager")).check_packed
    cu_seqlens = ends(4, 5).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert check_packed((1, 9), cu_seqlens, 7) == (None, cu_seqlens, 7)
    with pytest.raises(ValueError, match="needs max_seqlen"):
        check_packed((1, 9), cu_seqlens, None)
    with pytest.raises(ValueError, match="packed sequences are one row"):
        check_packed((2, 9), cu_seqlens, 7)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(AssertionError, match="it was read"):
        check_packed((1, 9), cu_seqlens, 7)


# --- positions to predict ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
@pytest.mark.parametrize("layout", ["packed", "padded", "with holes"])
@torch.no_grad()
def test_logits_at_prediction_positions_are_those_of_all_positions(layout, attention):
    packed, padded = packed_and_padded()
    batch = {"packed": packed, "padded": padded, "with holes": padded_batch()}[layout]
    batch.pop("labels", None)
    model = build(attention=attention)
    expected = model(**batch).logits.flatten(0, 1)
    positions = torch.tensor([0, 3, 11, 14, 3])  # of padding too
    logits = model(**batch, prediction_positions=positions).logits
    assert logits.shape == (5, TINY["vocab_size"])
    assert worst(logits, expected[positions]) < 1e-5


# --- unpadding ---------------------------------------------------------------------------------------------------


random_masks = strategies.integers(1, 10).flatmap(
    lambda length: strategies.lists(
        strategies.one_of(
            strategies.lists(strategies.integers(0, 1), min_size=length, max_size=length),  # mostly with holes
            strategies.tuples(strategies.integers(0, length), strategies.integers(0, length)).map(
                lambda ends: [int(min(ends) <= position < max(ends)) for position in range(length)]
            ),
        ),
        min_size=1,
        max_size=4,
    )
)


def has_hole(row):
    tokens = [position for position, is_token in enumerate(row) if is_token]
    return bool(tokens) and tokens[-1] - tokens[0] >= len(tokens)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(rows=random_masks)
def test_unpad_takes_out_padding_and_nothing_else(rows):
    mask = torch.tensor(rows)
    positions, layout = remote_module(cached_double_model("eager")).unpad(mask)
    if mask.all():
        assert positions is None and layout == (None, None, None)
    elif not mask.any() or any(map(has_hole, rows)):
        assert positions is None and layout.cu_seqlens is None and torch.equal(layout.attention_mask, mask)
    else:
        assert positions.tolist() == mask.flatten().nonzero()[:, 0].tolist()
        assert layout.attention_mask is None and layout.cu_seqlens.dtype == torch.int32
        assert torch.equal(layout.cu_seqlens, ends(*mask.sum(1).tolist()))
        assert layout.max_seqlen >= mask.sum(1).max()
        row_of_token = mask.nonzero()[:, 0]
        of_token = layout.sequence_ids(len(positions))
        assert torch.equal(of_token[:, None] == of_token, row_of_token[:, None] == row_of_token)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(rows=random_masks)
def test_an_unpadding_back_end_equals_eager_under_any_mask(rows):
    mask = torch.tensor(rows)
    ids = random_ids(*mask.shape)
    ours, expected = (cached_double_model(name)(ids, mask).last_hidden_state for name in ("flex_attention", "eager"))
    assert worst(ours, expected) < 1e-12
    assert not ours[mask == 0].any()
