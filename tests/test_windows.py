"""Regions to windows: every token in its place, none lost but fewer than a window at the end.

pytest tests/test_windows.py
"""

import pickle
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnabert2 import windows as windows_module
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sequences import Record
from dnabert2.windows import (
    SPLIT_LENGTH,
    Splitter,
    WindowCutter,
    Windows,
    kingdom_of,
    region_bases,
    regions,
    reverse_complement,
    split_regions,
)


CLS, SEP, FIRST = 1, 2, 10
TOKENIZER = SimpleNamespace(cls_token_id=CLS, sep_token_id=SEP)


def numbered(lengths):
    """Regions of so many tokens, no two tokens of them alike."""
    ends = np.cumsum([0, *lengths]) + FIRST
    return [np.arange(start, end, dtype=np.uint16) for start, end in pairwise(ends)]


def cut(lengths, max_seq_length):
    """Windows of numbered regions, the regions and the tokens still to come."""
    cutter, all_regions = WindowCutter(max_seq_length, TOKENIZER), numbered(lengths)
    windows = [cutter(region) for region in all_regions]
    return np.concatenate([np.empty((0, max_seq_length), int), *windows]).astype(int), all_regions, cutter.rest


# --- the cutter --------------------------------------------------------------------------------------------------

wild = settings(max_examples=300, deadline=None)
region_lengths = st.lists(st.integers(0, 40), max_size=30)
window_lengths = st.integers(3, 14)


@wild
@given(region_lengths, window_lengths)
def test_every_token_comes_once_but_fewer_than_a_window_at_the_end(lengths, max_seq_length):
    windows, _, rest = cut(lengths, max_seq_length)
    tokens = [*windows[:, 1:-1].ravel(), *rest]
    assert sorted(token for token in tokens if token != SEP) == list(range(FIRST, FIRST + sum(lengths)))
    assert len(rest) < max_seq_length - 2


@wild
@given(region_lengths, window_lengths)
def test_every_window_is_full(lengths, max_seq_length):
    windows, _, _ = cut(lengths, max_seq_length)
    assert (windows[:, 0] == CLS).all() and (windows[:, -1] == SEP).all()
    inner = windows[:, 1:-1]
    assert ((inner == SEP) | (inner >= FIRST)).all()


@wild
@given(region_lengths, window_lengths)
def test_order_is_that_of_the_regions_within_each_and_among_left_overs(lengths, max_seq_length):
    windows, all_regions, rest = cut(lengths, max_seq_length)
    tokens = np.array([token for token in [*windows[:, 1:-1].ravel(), *rest] if token != SEP])
    for region in all_regions:
        assert (tokens[np.isin(tokens, region)] == region).all()
    inner = max_seq_length - 2
    left_over = [token for region in all_regions for token in region[len(region) // inner * inner :]]
    assert tokens[np.isin(tokens, left_over)].tolist() == left_over


@wild
@given(region_lengths, window_lengths)
@example([5, 3], 8)  # a left-over one token short of a window
@example([6, 3], 8)
@example([1, 1, 1], 4)
def test_separators_stand_between_left_overs_of_different_regions_alone(lengths, max_seq_length):
    windows, all_regions, rest = cut(lengths, max_seq_length)
    region_of = {token: number for number, region in enumerate(all_regions) for token in region.tolist()}
    last_of = [int(region[-1]) if len(region) else None for region in all_regions]
    for row in [*windows[:, 1:].tolist(), rest.tolist()]:
        assert row[:1] != [SEP]
        for one, other in pairwise(row):
            if SEP not in (one, other):
                assert other == one + 1 and region_of[one] == region_of[other]
        for before, _, after in (trio for trio in zip(row, row[1:-1], row[2:], strict=False) if trio[1] == SEP):
            assert before == last_of[region_of[before]]
            assert after == SEP or region_of[after] > region_of[before]
        # Two in a row only where a separator is the last that a window has room for.
        assert all(pair != (SEP, SEP) for pair in pairwise(row[:-1]))


def test_a_separator_on_the_last_place_stands_beside_the_closing_one():
    windows, _, rest = cut([5, 3], max_seq_length=8)  # nothing else fits: no token is lost, none moved
    assert windows.tolist() == [[CLS, 10, 11, 12, 13, 14, SEP, SEP]]
    assert rest.tolist() == [15, 16, 17]


def test_no_separator_comes_first_after_a_full_window():
    cutter = WindowCutter(6, TOKENIZER)
    assert cutter(np.array([10, 11])).tolist() == []
    assert cutter(np.array([12])).tolist() == [[CLS, 10, 11, SEP, 12, SEP]]
    assert cutter(np.array([13])).tolist() == [] and cutter.rest.tolist() == [13]


def test_regions_of_whole_windows_alone_leave_nothing_over():
    windows, _, rest = cut([12, 6, 18], max_seq_length=8)
    assert (windows[:, 1:-1].ravel() == np.arange(FIRST, FIRST + 36)).all() and not len(rest)


def test_short_sequences_are_all_used():
    lengths = np.random.default_rng(0).integers(14, 101, 500).tolist()  # tokens, as of GUE
    windows, _, rest = cut(lengths, max_seq_length=128)
    separators = int((windows[:, 1:-1] == SEP).sum())
    tokens = windows[:, 1:-1].size - separators
    assert tokens + (rest != SEP).sum() == sum(lengths) and len(rest) < 126
    assert separators >= 0.97 * (len(lengths) - len(windows)) and windows.dtype == int


@wild
@given(st.lists(st.integers(0, 40), min_size=1, max_size=10), window_lengths)
def test_windows_are_of_16_bits_whatever_the_tokens_come_in(lengths, max_seq_length):
    cutter = WindowCutter(max_seq_length, TOKENIZER)
    for region in numbered(lengths):
        windows = cutter((region + 65_000).astype(np.uint16))
        assert windows.dtype == cutter.rest.dtype == np.uint16
        assert windows.shape[1:] == (max_seq_length,)


def test_a_real_tokenizers_ids_are_those_of_cls_and_sep():
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    window = WindowCutter(4, tokenizer)(np.array([7, 8]))[0].tolist()
    assert window == [tokenizer.cls_token_id, 7, 8, tokenizer.sep_token_id]


# --- regions and strands -----------------------------------------------------------------------------------------

LENGTH = 3  # tokens a window: a region has 480 bases
letters = st.text("ACGTNRY", max_size=60).map(lambda text: text * 20)


@wild
@given(st.lists(st.tuples(letters, st.sampled_from([None, "a", "b/c"])), max_size=6))
def test_regions_are_all_the_bases_in_order_cut_at_other_letters_and_at_their_length(records):
    records = [Record(str(i), sequence, species) for i, (sequence, species) in enumerate(records)]
    found = list(regions(records, LENGTH))
    expected = []
    for record in records:
        for run in "".join(letter if letter in "ACGT" else " " for letter in record.sequence).split():
            expected += [(record.species, run[start : start + 480]) for start in range(0, len(run), 480)]
    assert region_bases(LENGTH) == 480
    assert found == expected


def test_the_reverse_complement_is_the_other_strand():
    assert reverse_complement("AACGT") == "ACGTT"
    assert reverse_complement("") == ""


@given(st.text("ACGT"))
def test_the_reverse_complement_of_the_reverse_complement_is_the_sequence(sequence):
    assert reverse_complement(reverse_complement(sequence)) == sequence
    pairs = dict(zip("ACGT", "TGCA", strict=True))
    assert all(pairs[base] == other for base, other in zip(sequence, reverse_complement(sequence)[::-1], strict=True))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.text("ACGT", min_size=1, max_size=6), st.booleans()), max_size=60),
    st.sampled_from([0, 1, 30, 50, 100]),
)
def test_a_region_goes_where_it_went_before_on_whatever_strand(drawn, percentage):
    split_of, splits, seen = Splitter(percentage), {}, Counter()
    for species, region, is_turned in drawn:
        split = split_of(species, reverse_complement(region) if is_turned else region)
        key = min(region, reverse_complement(region))
        if key not in splits:
            seen[species, split] += 1
        assert splits.setdefault(key, split) == split
    for species in "ab":  # repeats do not count: of the others every species has its share
        train, validation = (seen[species, split] for split in ("train", "validation"))
        assert abs(validation - (train + validation) * percentage / 100) <= 1


@wild
@given(st.lists(st.integers(100, 400_000), min_size=1, max_size=4), st.sampled_from([5, 20, 50]))
def test_windows_of_every_length_hold_out_the_same_bases(lengths, percentage):
    draw = np.random.default_rng(0)
    records = [Record(str(i), "".join(draw.choice([*"ACGT"], length))) for i, length in enumerate(lengths)]
    held_out = {}
    for max_seq_length in (SPLIT_LENGTH, 256, 1000, 8192):
        found = [*split_regions(records, max_seq_length, Splitter(percentage))]
        assert "".join(region for *_, region in found) == "".join(record.sequence for record in records)
        assert max(len(region) for *_, region in found) <= region_bases(max_seq_length)
        held_out[max_seq_length] = "".join(region for split, _, region in found if split == "validation")
    assert len({*held_out.values()}) == 1
    blocks = sum(-(-length // region_bases(SPLIT_LENGTH)) for length in lengths)
    assert bool(held_out[SPLIT_LENGTH]) or blocks * percentage < 100


# --- parts and species -------------------------------------------------------------------------------------------


def windows_of(sizes, species):
    rows = np.arange(10 * sum(sizes), dtype=np.uint16).reshape(-1, 10)
    return Windows(np.split(rows, np.cumsum(sizes)[:-1]), species), rows


def test_windows_of_several_parts_equal_their_concatenation():
    windows, whole = windows_of([3, 0, 6], ["a", "b", "a"])
    assert len(windows) == 9
    for rows in ([0], [2, 3], [8, 0, 5, 5, 3], list(range(9))):
        assert (windows[rows] == whole[rows]).all() and windows[rows].dtype == np.int64


def test_rows_of_a_species_are_those_of_all_its_parts_and_empty_ones_have_none():
    windows, _ = windows_of([0, 2, 0, 3, 1, 0, 2, 0], ["e", "a", "b", "b", "a", "a", "c", "d"])
    rows = windows.rows_by_species()
    assert {name: of_species.tolist() for name, of_species in rows.items()} == {
        "a": [0, 1, 5],
        "b": [2, 3, 4],
        "c": [6, 7],
    }
    assert list(windows.part_of(range(8))) == [1, 1, 3, 3, 3, 4, 6, 6]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), min_size=1, max_size=12))
def test_every_row_is_of_the_species_of_its_part(parts):
    windows, _ = windows_of([size for size, _ in parts], [species for _, species in parts])
    expected = [species for size, species in parts for _ in range(size)]
    assert [windows.species[part] for part in windows.part_of(range(len(windows)))] == expected
    rows = windows.rows_by_species()
    assert sorted(row for of_species in rows.values() for row in of_species) == list(range(len(windows)))
    assert all(expected[row] == species for species, of_species in rows.items() for row in of_species)
    assert all(len(of_species) for of_species in rows.values())


def stored(folder, sizes, species):
    """Windows in .npy files, a file for each of the sizes."""
    windows, whole = windows_of(sizes, species)
    places = []
    for number, part in enumerate(windows.parts):
        np.save(folder / f"{number}.npy", part)
        places.append((folder / f"{number}.npy", 0, len(part)))
    return places, whole


def test_rows_of_files_are_mapped_each_file_once(tmp_path):
    ((path, _, _),), whole = stored(tmp_path, [9], ["a"])
    windows = Windows.of_files([(path, 0, 2), (path, 2, 3), (path, 3, 9)], ["a", "b", "a"])
    assert (windows[range(9)] == whole).all() and windows.species == ["a", "b", "a"]
    assert len({id(part._mmap) for part in windows.parts}) == 1
    assert len(Windows.of_files([], [])) == 0


def test_a_pickle_of_rows_in_memory_holds_them_and_of_files_does_not(tmp_path):
    places, whole = stored(tmp_path, [1000, 3000], ["a", "b"])
    in_memory, of_files = windows_of([1000, 3000], ["a", "b"])[0], Windows.of_files(places, ["a", "b"])
    for windows, low, high in ((in_memory, whole.nbytes, 2 * whole.nbytes), (of_files, 1, 1000)):
        pickled = pickle.dumps(windows)
        again = pickle.loads(pickled)
        assert low <= len(pickled) <= high
        assert (again[range(4000)] == whole).all() and again.species == ["a", "b"]
        assert len(pickle.dumps(again)) == len(pickled)


def test_too_many_files_are_refused_with_the_remedy(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    places, _ = stored(tmp_path, [1] * 50, ["a"] * 50)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(windows_module, "_allow_open_files", lambda count: None)  # as where the hard limit is the soft
    with places[0][0].open() as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 20, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"too many open files.* 50 .*`ulimit -n`"):
            Windows.of_files(places, ["a"] * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "limits, wanted",
    [((256, 4096), (356, 4096)), ((256, 300), (300, 300)), ((256, -1), (356, -1)), ((-1, -1), None)],
)
def test_the_soft_limit_rises_by_the_number_of_files_up_to_the_hard_one(monkeypatch, limits, wanted):
    found = []

    def refuse(_, both):
        found.append(both)
        raise ValueError("macOS says so above a limit that it does not tell")

    fake = SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _: limits, setrlimit=refuse)
    monkeypatch.setattr(windows_module, "resource", fake)
    windows_module._allow_open_files(100)
    assert found == ([wanted] if wanted else [])
    monkeypatch.setattr(windows_module, "resource", None)  # Windows
    windows_module._allow_open_files(100)


def test_no_parts_are_no_rows():
    windows = Windows([], [])
    assert len(windows) == 0 and windows.rows_by_species() == {}


@pytest.mark.parametrize(
    "species, kingdom",
    [("fungi/yeast.R64", "fungi"), ("a/b/c", "a/b"), ("yeast", ""), ("", ""), ("/yeast", "")],
)
def test_the_kingdom_is_what_stands_before_the_last_slash(species, kingdom):
    assert kingdom_of(species) == kingdom
