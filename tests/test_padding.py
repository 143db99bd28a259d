"""Batches of rows of different lengths, padded and packed.

pytest tests/test_padding.py
"""

import numpy as np
import pytest
import torch
from models import TINY, build, gradients, worst
from transformers import AutoModelForSequenceClassification

from dnabert2.encoding import EncodedSplit
from dnabert2.padding import Collator, Packer


CPU = torch.device("cpu")


def split_of(*rows, types=False):
    ids = [np.array(row, dtype=np.int32) for row in rows]
    return EncodedSplit(ids, [row % 2 for row in ids] if types else None, np.arange(len(rows)), 0, 0.0)


def test_batches_are_padded_on_the_right_to_their_longest_row_or_to_a_multiple():
    split = split_of([5, 6, 7], [8])
    batch = Collator(3, True, 1, CPU)([(split, 1), (split, 0)])
    assert batch["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7]] and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]] and "token_type_ids" not in batch
    assert Collator(3, True, 8, CPU)([(split, 1)])["input_ids"].tolist() == [[8, 3, 3, 3, 3, 3, 3, 3]]


def test_token_types_go_to_models_that_take_them():
    split = split_of([5, 6, 7], [8], types=True)
    assert Collator(0, True, 4, CPU)([(split, 0), (split, 1)])["token_type_ids"].tolist() == [[1, 0, 1, 0], [0] * 4]
    assert "token_type_ids" not in Collator(0, False, 4, CPU)([(split, 0)])


def random_split(*lengths):
    """Rows of two sequences each, as pairs have them."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, TINY["vocab_size"], length) for length in lengths]
    types = [(np.arange(length) > length // 2).astype(np.int32) for length in lengths]
    return EncodedSplit(ids, types, None, 0, 0.0)


def test_packed_rows_stand_one_after_the_other_with_padding_after_them():
    split = split_of([5, 6, 7], [8], [9, 10], types=True)
    batch = Packer(3, True, 5, CPU, max_seqlen=3)([(split, 2), (split, 0)])
    assert batch["input_ids"].tolist() == [[9, 10, 5, 6, 7, 3, 3, 3, 3, 3]] and batch["input_ids"].dtype == torch.int64
    assert batch["token_type_ids"].tolist() == [[1, 0, 1, 0, 1, 0, 0, 0, 0, 0]]
    assert batch["cu_seqlens"].tolist() == [0, 2, 5, 7, 10] and batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 3 and "attention_mask" not in batch
    assert "token_type_ids" not in Packer(3, False, 5, CPU, max_seqlen=3)([(split, 2)])
    assert Packer(3, True, 1, CPU, max_seqlen=3)([(split, 1)])["cu_seqlens"].tolist() == [0, 1]


@pytest.mark.parametrize(("multiple", "max_seqlen"), [(16, 16), (112, 20), (112, 512), (32, 17)])
def test_packed_batches_of_as_many_tokens_have_the_same_shapes(multiple, max_seqlen):
    rng = np.random.default_rng(0)
    sequences = set()
    for _ in range(200):
        lengths = rng.integers(1, 17, 8)
        batch = Packer(3, True, multiple, CPU, max_seqlen)([(random_split(*lengths), row) for row in range(8)])
        parts = batch["cu_seqlens"].diff().tolist()
        assert parts[:8] == lengths.tolist() and 1 <= min(parts) and max(parts) <= max_seqlen
        assert batch["input_ids"].shape == (1, sum(parts)) and sum(parts) % multiple == 0
        assert sum(parts) - sum(lengths) < multiple + len(parts) - 8
        sequences.add(len(parts))
    assert len(sequences) == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_have_the_logits_and_the_gradients_of_padded_ones(attention):
    split = random_split(9, 30, 2, 17)
    rows = [(split, row) for row in (2, 0, 3, 1)]
    found = []
    for collator in (Packer(3, True, 24, CPU, max_seqlen=30), Collator(3, True, 1, CPU)):
        model = build(AutoModelForSequenceClassification, attention, dtype=torch.float64)
        logits = model(**collator(rows)).logits[: len(rows)]
        logits.square().sum().backward()
        found.append((logits, gradients(model)))
    (packed, ours), (padded, expected) = found
    assert worst(packed, padded) < 1e-12
    assert all(worst(ours[name], gradient) < 1e-11 for name, gradient in expected.items())
