"""What benchmarks/compute.py makes of models and sequences.

pytest tests/test_compute.py
"""

from argparse import Namespace

import pytest
from compute import MODELS, config_of, count_flops, rows_of
from length import MLM_PROBABILITY, our_config

from dnabert2.loading import ROOT
from dnabert2.throughput import training_flops_per_token


@pytest.fixture(scope="module")
def ours():
    return our_config(Namespace(config_name=str(ROOT / "configs" / "tiny.json"), hidden_dropout_prob=0.1))


def test_dnabert_cuts_a_long_sequence_into_rows_of_at_most_512_tokens():
    assert rows_of("DNABERT", 500) == (1, 497)
    assert rows_of("DNABERT", 515) == (1, 512)
    assert rows_of("DNABERT", 516) == (2, 258)
    assert rows_of("DNABERT", 5000) == (10, 502)


def test_nucleotide_transformer_reads_6_mers_and_what_is_left_over_in_single_bases():
    assert rows_of("NT-500M", 500) == (1, 83 + 2 + 1)


def test_flops_counted_of_our_training_are_those_that_mfu_is_reckoned_by(ours):
    rows, length = rows_of("DNABERT-2", 1000)
    formula = training_flops_per_token(ours, length, MLM_PROBABILITY) * rows * length / 1000
    assert count_flops("DNABERT-2", ours, "train", 1000) == pytest.approx(formula, rel=0.02)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "DNABERT-2"])
def test_a_layer_of_the_others_costs_12_hidden_squared_products_a_token(ours, name):
    one, two = (config_of(name, ours, layers) for layers in (1, 2))
    rows, length = rows_of(name, 500)
    layer = 500 * (count_flops(name, two, "embed", 500) - count_flops(name, one, "embed", 500)) / (rows * length)
    assert layer == pytest.approx(2 * 12 * one.hidden_size**2 + 4 * one.hidden_size * length, rel=1e-6)
