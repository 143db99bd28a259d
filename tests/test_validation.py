"""Losses of species and kingdoms: sums over masked tokens, computed by hand for a model whose logits are known.

pytest tests/test_validation.py
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from dnabert2 import batches
from dnabert2.batches import MaskedWindows, Masking, validation_loader
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.validation import COLUMNS, by_kingdom, markdown, metrics, validate
from dnabert2.windows import Windows


LENGTH, VOCABULARY = 16, 4096
SPECIES = ["fungi/yeast", "plants/rice", "fungi/yeast", "fungi/mould", "phage", "fungi/none"]
SIZES = [5, 9, 3, 1, 4, 0]


class KnownLogits(torch.nn.Module):
    """Its logits for a position depend on the token that stands there and on nothing else."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
        )
        self.batches = 0

    def forward(self, input_ids, prediction_positions):
        assert not self.training and not torch.is_grad_enabled()
        self.batches += 1
        return SimpleNamespace(logits=self.table[input_ids.flatten()[prediction_positions]])


@pytest.fixture(scope="module")
def model():
    return KnownLogits()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


def masked(tokenizer, sizes=SIZES, species=SPECIES, mlm_probability=0.4):
    tokens = np.random.default_rng(1).integers(5, VOCABULARY, (sum(sizes), LENGTH)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    windows = Windows(np.split(tokens, np.cumsum(sizes)[:-1]), list(species))
    return MaskedWindows(windows, Masking(tokenizer, mlm_probability), seed=0)


def run(dataset, model, batch_size=4, index=0, processes=1):
    loader = validation_loader(dataset, batch_size, index, processes)
    return validate(Accelerator(cpu=True), model, loader, dataset.windows)


@torch.no_grad()
def by_hand(dataset, model):
    """Row by row and token by token, in float64."""
    species = [name for name, part in zip(SPECIES, dataset.windows.parts, strict=True) for _ in part]
    table = {}
    for row, name in enumerate(species):
        batch = dataset.__getitems__([(0, row)])
        for position, label in zip(batch["prediction_positions"].tolist(), batch["labels"].tolist(), strict=True):
            if label >= 0:
                log_probabilities = model.table[batch["input_ids"][0, position]].double().log_softmax(0)
                sums = table.setdefault(name, dict.fromkeys(COLUMNS, 0.0))
                sums["loss"] -= log_probabilities[label].item()
                sums["correct"] += int(log_probabilities.argmax()) == label
                sums["masked_tokens"] += 1
    return table


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_sums_of_every_species_are_those_by_hand_whatever_the_batches(tokenizer, model, batch_size):
    dataset, before = masked(tokenizer), model.batches
    table = run(dataset, model, batch_size)
    assert model.batches - before == math.ceil(sum(SIZES) / batch_size)
    assert_same(table, by_hand(dataset, model))
    assert list(table) == ["fungi/mould", "fungi/yeast", "phage", "plants/rice"]  # none without a row
    assert model.training and all(row["masked_tokens"] > 0 for row in table.values())


def test_what_the_model_gets_right_is_counted(tokenizer):
    dataset, exact = masked(tokenizer), KnownLogits()
    with torch.no_grad():
        exact.table.copy_(10 * torch.eye(VOCABULARY))  # right where the masked token was left or hit by chance
    table = run(dataset, exact)
    assert_same(table, by_hand(dataset, exact))
    total = sum(row["correct"] for row in table.values())
    assert 0 < total < 0.3 * sum(row["masked_tokens"] for row in table.values())


@pytest.mark.parametrize("processes", [2, 3, 4, 30])
def test_shares_of_processes_add_up_and_filling_rows_do_not_count(tokenizer, model, processes):
    dataset = masked(tokenizer)
    shares = [run(dataset, model, batch_size=3, index=index, processes=processes) for index in range(processes)]
    total = {}
    for share in shares:
        for name, row in share.items():
            sums = total.setdefault(name, dict.fromkeys(COLUMNS, 0.0))
            for column in COLUMNS:
                sums[column] += row[column]
    assert_same(dict(sorted(total.items())), run(dataset, model))


def test_the_first_rows_species_does_not_count_what_fills_batches_up(tokenizer, model):
    dataset = masked(tokenizer, sizes=[1, 20], species=["a", "b"])
    own = (batches.validation_loader(dataset, 1).dataset.__getitems__([(0, 0)])["labels"] >= 0).sum()
    assert run(dataset, model, batch_size=2)["a"]["masked_tokens"] == own


def test_without_masked_tokens_there_is_no_metric(tokenizer, model):
    table = run(masked(tokenizer, mlm_probability=0.0), model)
    assert table == {} and metrics(table) == {} and by_kingdom(table) == {}


# --- of tables ---------------------------------------------------------------------------------------------------


def sums(loss, correct, masked_tokens):
    return dict(zip(COLUMNS, map(float, (loss, correct, masked_tokens)), strict=True))


TABLE = {"fungi/a": sums(10, 1, 10), "fungi/b": sums(1, 60, 90), "phage": sums(5, 0, 5), "plants/c": sums(8, 2, 4)}


def test_kingdoms_are_sums_over_their_species_and_names_without_a_slash_have_none():
    assert by_kingdom(TABLE) == {"fungi": sums(11, 61, 100), "plants": sums(8, 2, 4)}


def test_metrics_weigh_by_masked_tokens():
    assert metrics(TABLE) == {
        "validation_loss": 24 / 109,
        "validation_loss/fungi": 0.11,
        "validation_loss/plants": 2.0,
        "validation_accuracy": 63 / 109,
        "validation_accuracy/fungi": 0.61,
        "validation_accuracy/plants": 0.5,
    }


def test_a_single_kingdom_has_no_metrics_of_its_own():
    table = {name: TABLE[name] for name in ("fungi/a", "fungi/b", "phage")}
    assert metrics(table) == {"validation_loss": 16 / 105, "validation_accuracy": 61 / 105}


def test_metrics_of_an_empty_table_are_none():
    assert metrics({}) == {}


def test_the_table_in_markdown():
    assert markdown(TABLE).splitlines() == [
        "| | masked tokens | loss, nats a token | accuracy |",
        "|---|--:|--:|--:|",
        "| **all** | 109 | 0.2202 | 0.5780 |",
        "| **fungi** | 100 | 0.1100 | 0.6100 |",
        "| **plants** | 4 | 2.0000 | 0.5000 |",
        "| fungi/a | 10 | 1.0000 | 0.1000 |",
        "| fungi/b | 90 | 0.0111 | 0.6667 |",
        "| phage | 5 | 1.0000 | 0.0000 |",
        "| plants/c | 4 | 2.0000 | 0.5000 |",
    ]


def test_a_folder_called_all_does_not_hide_the_row_of_all():
    lines = markdown({"all/a": sums(1, 0, 1), "b": sums(2, 0, 3)}).splitlines()
    assert lines[2].startswith("| **all** | 4 |") and lines[3].startswith("| **all** | 1 |") and len(lines) == 6


@given(st.dictionaries(st.text(), st.integers(1, 10**9), min_size=1, max_size=5))
def test_the_table_is_well_formed_whatever_the_species_are_called(counts):
    table = {name: sums(count, 0, count) for name, count in counts.items()}
    text = markdown(table)
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == text.count("\n") == 3 + len(table) + len(by_kingdom(table))
    for line in lines:
        assert len(line.splitlines()) == 1
        assert line.replace("\\|", "").count("|") == 5 and line.startswith("|") and line.endswith("|")
