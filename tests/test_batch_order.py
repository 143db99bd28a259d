"""Order of the training windows: every row in its turn, species mixed, a pure function of (seed, step).

pytest tests/test_batch_order.py
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import assert_share, mixture

from dnabert2 import batches


def step_rows(*sizes, temperature=1.0, total=8, micro=2, first=0, last=5, seed=3, index=0, processes=1):
    """Micro-batches of one process."""
    return list(
        batches.StepSampler(
            mixture(*sizes, temperature=temperature, seed=seed),
            total_batch_size=total,
            micro_batch_size=micro,
            first_step=first,
            last_step=last,
            process_index=index,
            num_processes=processes,
        )
    )


def joined(micro_batches):
    return [key for batch in micro_batches for key in batch]


# --- order -------------------------------------------------------------------------------------------------------


def test_every_row_comes_once_an_epoch_in_another_order_each():
    keys = joined(step_rows(40, total=8, last=15))
    orders = [[row for epoch, row in keys if epoch == e] for e in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(40))
    assert [epoch for epoch, _ in keys] == [0] * 40 + [1] * 40 + [2] * 40
    assert joined(step_rows(40, total=8, last=15, seed=4)) != keys


def test_batches_span_epochs_without_a_gap():
    keys = joined(step_rows(10, total=8, last=5))
    assert len(keys) == 40
    assert [epoch for epoch, _ in keys] == sorted(e for e in range(4) for _ in range(10))
    smaller_than_a_batch = joined(step_rows(3, total=8, last=3))
    assert [epoch for epoch, _ in smaller_than_a_batch] == [position // 3 for position in range(24)]


species_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)
temperatures = st.sampled_from([1.0, 1.5, 2.0, 5.0, 1e9])
wild = settings(max_examples=60, deadline=None)


@wild
@given(
    sizes=species_sizes,
    temperature=temperatures,
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    first=st.integers(0, 12),
    seed=st.integers(0, 30),
)
def test_starting_at_a_step_gives_the_tail_of_the_sequence(sizes, temperature, micro, accumulation, first, seed):
    total = micro * accumulation
    arguments = {"temperature": temperature, "micro": micro, "total": total, "last": 12, "seed": seed}
    assert step_rows(*sizes, first=first, **arguments) == step_rows(*sizes, **arguments)[first * accumulation :]


@wild
@given(
    sizes=species_sizes,
    temperature=temperatures,
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    processes=st.integers(1, 4),
)
def test_shares_of_processes_make_up_the_batch_of_one(sizes, temperature, micro, accumulation, processes):
    total = micro * accumulation * processes
    arguments = {"temperature": temperature, "micro": micro, "total": total, "last": 6}
    whole = joined(step_rows(*sizes, **arguments))
    shares = [step_rows(*sizes, index=index, processes=processes, **arguments) for index in range(processes)]
    assert all(len(batch) == micro for share in shares for batch in share)
    steps = [
        key
        for step in range(6)
        for share in shares
        for key in joined(share[step * accumulation : (step + 1) * accumulation])
    ]
    assert steps == whole
    assert len(set(steps)) == len(steps)  # disjoint: every (pass, row) once


def test_the_sampler_knows_its_length():
    sampler = batches.StepSampler(
        mixture(10), total_batch_size=12, micro_batch_size=3, first_step=2, last_step=7, num_processes=2
    )
    assert len(sampler) == len(list(sampler)) == 10


# --- the mixture of species --------------------------------------------------------------------------------------


def epochs(mixed, count):
    """(passes, rows) of the first epochs, joined."""
    return tuple(np.concatenate(arrays) for arrays in zip(*map(mixed.epoch, range(count)), strict=True))


@wild
@given(sizes=st.lists(st.integers(1, 10**5), min_size=1, max_size=5))
def test_temperature_1_reads_every_row_once_an_epoch(sizes):
    mixed = mixture(*sizes)
    assert len(mixed) == sum(sizes) and (mixed.passes_an_epoch == 1).all()
    for number in (0, 7):
        passes, rows = mixed.epoch(number)
        assert (passes == number).all()
        assert (np.sort(rows) == np.arange(sum(sizes))).all()


@pytest.mark.parametrize("temperature", [2.0, 5.0, 1e9])
@pytest.mark.parametrize("sizes", [(10_000, 100, 1), (1, 50_000), (7,), (300, 300, 300), (9_000, 2_000, 400, 30, 2)])
def test_shares_follow_the_root_of_the_size_that_the_temperature_says(sizes, temperature):
    mixed = mixture(*sizes, temperature=temperature)
    shares = np.array([size ** (1 / temperature) for size in sizes])
    expected = sum(sizes) * shares / shares.sum()
    ends = np.cumsum(sizes)
    for number in (0, 3):
        _, rows = mixed.epoch(number)
        counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(sizes))
        assert (abs(counts - expected) <= np.maximum(0.5 + 1e-6, 1 - expected)).all()
        assert len(rows) == len(mixed)
    assert abs(len(mixed) - sum(sizes)) <= len(sizes)


def test_a_species_too_small_for_its_share_still_has_a_row_an_epoch():
    mixed = mixture(10**6, 1, temperature=1.0001)
    assert mixed.rows_an_epoch.tolist() == [10**6, 1]


@wild
@given(sizes=species_sizes, temperature=temperatures, seed=st.integers(0, 30))
def test_every_species_is_read_in_whole_passes(sizes, temperature, seed):
    mixed, counts, start = mixture(*sizes, temperature=temperature, seed=seed), {}, np.cumsum([0, *sizes])
    seen = set()
    for number in range(6):
        keys = list(zip(*(array.tolist() for array in mixed.epoch(number)), strict=True))
        assert not seen & set(keys) and len(set(keys)) == len(keys)  # no mask comes twice
        seen |= set(keys)
        for _, row in keys:
            counts[row] = counts.get(row, 0) + 1
        for species in range(len(sizes)):
            rows = range(start[species], start[species + 1])
            of_species = [counts.get(row, 0) for row in rows]
            assert max(of_species) - min(of_species) <= 1  # a row comes again only when all others have come
            passes = sorted({number for number, row in seen if row in rows})
            assert passes == list(range(len(passes)))
            for i in passes[:-1]:
                assert {row for number, row in seen if number == i and row in rows} == set(rows)


def test_a_pass_goes_on_in_the_next_epoch_and_is_another_order_than_the_last():
    mixed = mixture(400, 40, temperature=5.0)
    passes, rows = epochs(mixed, 10)
    large = [rows[(rows < 400) & (passes == i)] for i in range(2)]
    assert all(sorted(one) == list(range(400)) for one in large)
    halves = [set(mixed.epoch(number)[1]) & set(range(400)) for number in range(2)]
    assert len(halves[0] | halves[1]) == min(400, len(halves[0]) + len(halves[1]))
    other_seed = mixture(400, 40, temperature=5.0, seed=4)
    assert set(other_seed.epoch(0)[1]) != set(mixed.epoch(0)[1])


def test_an_epoch_is_mixed():
    _, rows = mixture(3000, 1000, temperature=2.0).epoch(0)
    is_large = rows < 3000
    assert_share(is_large[:1000], is_large.mean())
    assert_share(is_large[1:] & is_large[:-1], is_large.mean() ** 2)


def test_an_epoch_is_a_function_of_sizes_temperature_seed_and_number():
    arguments = {"temperature": 3.0, "seed": 11}
    one, other = mixture(500, 20, 1, **arguments), mixture(500, 20, 1, **arguments)
    other.epoch(8)  # what was asked before does not matter
    for number in (5, 0):
        assert all((a == b).all() for a, b in zip(one.epoch(number), other.epoch(number), strict=True))
    assert (one.epoch(0)[1] != one.epoch(1)[1]).any()
