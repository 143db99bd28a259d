"""Mixtures of species for tests, and a test of shares."""

from itertools import pairwise

import numpy as np

from dnabert2 import batches


def mixture(*sizes, temperature=1.0, seed=3):
    """Species of so many rows, one after the other."""
    ends = np.cumsum([0, *sizes])
    rows = [np.arange(start, end) for start, end in pairwise(ends)]
    return batches.Mixture(rows, temperature, seed)


def assert_share(is_hit, probability):
    """The share of hits is the probability's, within four standard deviations of a binomial."""
    deviation = np.sqrt(probability * (1 - probability) / is_hit.size)
    assert abs(is_hit.mean() - probability) < 4 * deviation
