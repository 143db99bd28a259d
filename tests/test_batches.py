"""Masks of the training windows: right in their statistics, and a pure function of (seed, pass, row).

pytest tests/test_batches.py
"""

import numpy as np
import pytest
import torch
from mixtures import assert_share, mixture

from dnabert2 import batches
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.windows import Windows


ROWS, LENGTH = 3000, 64


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Random windows of ordinary tokens, in two parts."""
    tokens = np.random.default_rng(0).integers(5, len(tokenizer), (ROWS, LENGTH)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return Windows([tokens[:1000], tokens[1000:]], ["a", "b"])


@pytest.fixture(scope="module")
def masked_windows(windows, tokenizer):
    return batches.MaskedWindows(windows, batches.Masking(tokenizer, 0.15), seed=7)


def all_labels(batch):
    """Labels of every token of `input_ids`, -100 where there is nothing to predict."""
    labels, is_label = torch.full_like(batch["input_ids"], batches.IGNORE_INDEX), batch["labels"] >= 0
    labels.view(-1)[batch["prediction_positions"][is_label]] = batch["labels"][is_label]
    return labels.numpy()


def whole_epoch(masked_windows, epoch=0):
    batch = masked_windows.__getitems__([(epoch, row) for row in range(len(masked_windows))])
    return batch["input_ids"].numpy(), all_labels(batch)


# --- masks -------------------------------------------------------------------------------------------------------


def test_tokens_are_chosen_and_replaced_by_15_and_80_10_10_percent(masked_windows, windows, tokenizer):
    tokens = windows[range(ROWS)]
    input_ids, labels = whole_epoch(masked_windows)
    is_chosen = labels != batches.IGNORE_INDEX
    assert (input_ids[~is_chosen] == tokens[~is_chosen]).all()
    assert (labels[is_chosen] == tokens[is_chosen]).all()
    assert_share(is_chosen[:, 1:-1], 0.15)
    chosen, originals = input_ids[is_chosen], tokens[is_chosen]
    by_chance = 0.1 / len(masked_windows.masking.ordinary_ids)  # a random token can be the original one
    assert_share(chosen == tokenizer.mask_token_id, 0.8)
    assert_share(chosen == originals, 0.1 + by_chance)
    assert_share((chosen != originals) & (chosen != tokenizer.mask_token_id), 0.1 - by_chance)


def test_tokens_are_chosen_each_by_itself(masked_windows):
    is_chosen = whole_epoch(masked_windows)[1][:, 1:-1] != batches.IGNORE_INDEX
    assert_share(is_chosen[:, 1:] & is_chosen[:, :-1], 0.15**2)  # neighbours
    counts = is_chosen.sum(axis=1)  # of a row: binomial, not a fixed number
    variance = is_chosen.shape[1] * 0.15 * 0.85
    assert abs(counts.var() / variance - 1) < 4 * np.sqrt(2 / ROWS)


@pytest.mark.parametrize("span", [3, 6])
def test_spans_choose_15_percent_of_the_tokens_at_every_place_in_runs_of_a_span_or_more(windows, tokenizer, span):
    dataset = batches.MaskedWindows(windows, batches.Masking(tokenizer, 0.15, span), seed=7)
    is_chosen = whole_epoch(dataset)[1][:, 1:-1] != batches.IGNORE_INDEX
    for place in range(LENGTH - 2):
        assert_share(is_chosen[:, place], 0.15)
    edges = np.diff(np.pad(is_chosen, ((0, 0), (1, 1))).astype(int))
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
    is_inner = (starts[:, 1] > 0) & (stops[:, 1] < LENGTH - 2)
    lengths = (stops - starts)[is_inner, 1]
    assert len(lengths) > 1000 and lengths.min() == span
    assert len(dataset.__getitems__([(0, row) for row in range(32)])["labels"]) == (512 if span == 3 else 576)


def test_boundary_dropout_hides_both_ends_of_its_share_of_rows_and_changes_nothing_else(
    masked_windows, windows, tokenizer
):
    masking = batches.Masking(tokenizer, 0.15, boundary_dropout=0.4)
    input_ids, labels = whole_epoch(batches.MaskedWindows(windows, masking, seed=7))
    is_hidden = input_ids[:, 0] == tokenizer.mask_token_id
    assert_share(is_hidden, 0.4)
    assert ((input_ids[:, -1] == tokenizer.mask_token_id) == is_hidden).all()
    other_ids, other_labels = whole_epoch(masked_windows)
    assert (labels == other_labels).all() and (input_ids[:, 1:-1] == other_ids[:, 1:-1]).all()
    assert (input_ids[~is_hidden] == other_ids[~is_hidden]).all()


def test_special_tokens_are_neither_chosen_nor_drawn(masked_windows, windows, tokenizer):
    tokens = windows[range(ROWS)]
    for epoch in range(3):
        input_ids, labels = whole_epoch(masked_windows, epoch)
        assert (labels[:, [0, -1]] == batches.IGNORE_INDEX).all()
        assert (input_ids[:, 0] == tokenizer.cls_token_id).all() and (input_ids[:, -1] == tokenizer.sep_token_id).all()
        is_random = (input_ids != tokens) & (input_ids != tokenizer.mask_token_id)
        assert not set(input_ids[is_random]) & set(tokenizer.all_special_ids)
    everything = batches.MaskedWindows(windows, batches.Masking(tokenizer, 1.0), seed=7)
    labels = all_labels(everything.__getitems__([(0, 0)]))[0]
    assert (labels != batches.IGNORE_INDEX).tolist() == [False] + [True] * (LENGTH - 2) + [False]


def test_random_tokens_are_drawn_from_the_whole_vocabulary(masked_windows, windows, tokenizer):
    input_ids, _ = whole_epoch(masked_windows)
    changed = input_ids[(input_ids != windows[range(ROWS)]) & (input_ids != tokenizer.mask_token_id)]
    assert changed.min() < 5 + 30 and changed.max() > len(tokenizer) - 30
    assert_share(changed < (5 + len(tokenizer)) // 2, 0.5)


def test_a_row_has_the_same_mask_in_any_batch(masked_windows):
    keys = [(0, 5), (1, 2999), (0, 1200), (2, 5)]
    together = masked_windows.__getitems__(keys)
    for i, key in enumerate(keys):
        alone = masked_windows.__getitems__([key])
        assert torch.equal(together["input_ids"][i], alone["input_ids"][0])
        assert (all_labels(together)[i] == all_labels(alone)[0]).all()


def test_a_row_has_other_masks_in_other_epochs_rows_and_seeds(masked_windows, windows, tokenizer):
    other_seed = batches.MaskedWindows(windows, batches.Masking(tokenizer, 0.15), seed=8)

    def chosen(dataset, epoch, rows):
        keys = [(epoch, row) for row in rows]
        return all_labels(dataset.__getitems__(keys))[:, 1:-1] != batches.IGNORE_INDEX

    first = chosen(masked_windows, 0, range(1000))
    for other in (
        chosen(masked_windows, 1, range(1000)),
        chosen(masked_windows, 0, range(1000, 2000)),
        chosen(other_seed, 0, range(1000)),
    ):
        assert_share(first & other, 0.15**2)  # independent


class TestPredictionPositions:
    def test_are_of_one_number_in_all_batches_of_a_size(self, masked_windows):
        for rows in (8, 100):
            keys = [[(epoch, row) for row in range(rows)] for epoch in range(40)]
            numbers = {len(masked_windows.__getitems__(k)["prediction_positions"]) for k in keys}
            assert len(numbers) == 1 and numbers.pop() % 64 == 0

    def test_rise_and_are_filled_up_with_position_0_without_a_label(self, masked_windows):
        batch = masked_windows.__getitems__([(0, row) for row in range(8)])
        positions, labels = batch["prediction_positions"], batch["labels"]
        number = int((labels >= 0).sum())
        assert positions.dtype == labels.dtype == batch["input_ids"].dtype == torch.int64
        assert positions.shape == labels.shape and 0 < number < len(labels)
        assert (positions[:number].diff() > 0).all() and (labels[:number] >= 0).all()
        assert not positions[number:].any() and (labels[number:] == batches.IGNORE_INDEX).all()

    @pytest.mark.parametrize("probability", [0.0, 1e-4, 1.0])
    def test_hold_all_that_are_chosen(self, windows, tokenizer, probability):
        dataset = batches.MaskedWindows(windows, batches.Masking(tokenizer, probability), seed=7)
        batch = dataset.__getitems__([(0, row) for row in range(300)])
        number = int((batch["labels"] >= 0).sum())
        if probability in (0, 1):
            assert number == probability * 300 * (LENGTH - 2)
        assert number <= len(batch["labels"]) < 300 * LENGTH + 64

    def test_are_more_where_chance_chose_more_than_six_deviations(self, masked_windows):
        assert masked_windows.masking.prediction_rows(1000, 150) == 256  # 150 and 6 x 11.3
        assert masked_windows.masking.prediction_rows(1000, 256) == 256
        assert masked_windows.masking.prediction_rows(1000, 257) == 320


# --- windows of several lengths ----------------------------------------------------------------------------------


def test_lengths_are_the_longest_and_its_halves():
    assert batches.window_lengths(128, 1024) == [1024, 512, 256, 128]
    assert batches.window_lengths(100, 100) == [100]
    for shortest, longest in ((100, 1024), (3, 128), (256, 128)):
        with pytest.raises(ValueError, match="halved"):
            batches.window_lengths(shortest, longest)


def test_every_step_has_one_of_the_lengths_and_all_are_equally_common():
    lengths = [1024, 512, 256]
    drawn = np.array([batches.step_length(7, step, lengths) for step in range(3000)])
    assert batches.step_length(7, 11, lengths) == drawn[11]
    for length in lengths:
        assert_share(drawn == length, 1 / 3)
    assert (drawn != [batches.step_length(8, step, lengths) for step in range(3000)]).mean() > 0.6


@pytest.mark.parametrize("length", [64, 32, 16, 8, 4])
def test_shorter_windows_have_the_tokens_masks_and_labels_of_the_long_ones(masked_windows, tokenizer, length):
    whole = masked_windows.__getitems__([(0, row) for row in range(50)])
    cut = batches.cut_windows(whole, length)
    assert cut["input_ids"].shape == (50 * LENGTH // length, length)
    assert cut["prediction_positions"].shape == whole["prediction_positions"].shape
    assert (cut["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert (cut["input_ids"][:, -1] == tokenizer.sep_token_id).all()
    kept = LENGTH // length * (length - 2)  # of the tokens of a long window
    for values, shorter in ((whole["input_ids"], cut["input_ids"]), (all_labels(whole), all_labels(cut))):
        expected = np.asarray(values)[:, 1:-1][:, :kept].reshape(-1, length - 2)
        assert (np.asarray(shorter)[:, 1:-1] == expected).all()
    assert (all_labels(cut)[:, [0, -1]] == batches.IGNORE_INDEX).all()
    assert (all_labels(cut) >= 0).any()


def test_shorter_windows_hide_their_ends_where_the_long_one_does(windows, tokenizer):
    dataset = batches.MaskedWindows(windows, batches.Masking(tokenizer, 0.15, boundary_dropout=0.5), seed=7)
    whole = dataset.__getitems__([(0, row) for row in range(50)])
    ends = batches.cut_windows(whole, 16)["input_ids"][:, [0, -1]].reshape(50, -1, 2)
    assert (ends == whole["input_ids"][:, None, [0, -1]]).all()
    assert len(ends[:, 0].unique(dim=0)) == 2


# --- loaders and random streams ----------------------------------------------------------------------------------


def test_a_species_of_one_row_has_another_mask_each_time(masked_windows):
    mixed = mixture(60, 1, temperature=1e9)
    passes, rows = mixed.epoch(0)
    of_one = passes[rows == 60]
    assert sorted(of_one) == list(range(30))
    labels = all_labels(masked_windows.__getitems__([(int(number), 60) for number in of_one]))
    assert len({row.tobytes() for row in labels}) == 30


def test_the_loader_gives_the_same_batches_with_and_without_workers(masked_windows):
    mixed = mixture(1000, ROWS - 1000, temperature=2.0)
    sampler = batches.StepSampler(mixed, total_batch_size=32, micro_batch_size=8, first_step=1, last_step=6)
    alone, shared = (list(batches.training_loader(masked_windows, sampler, workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 20
    for one, other, keys in zip(alone, shared, sampler, strict=True):
        expected = masked_windows.__getitems__(keys)
        assert one.keys() == other.keys() == expected.keys()
        for name in expected:
            assert torch.equal(one[name], other[name]) and torch.equal(one[name], expected[name])


def test_masked_windows_are_what_masking_makes_of_their_tokens_and_draws(masked_windows, windows, tokenizer):
    keys = [(0, 5), (4, 2000)]
    draws = [batches.random_stream(7, batches.MASK, *key).random((3, LENGTH)) for key in keys]
    expected = batches.Masking(tokenizer, 0.15)(windows[[5, 2000]], np.stack(draws, axis=1))
    found = masked_windows.__getitems__(keys)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_separators_within_a_window_are_not_masked(tokenizer):
    tokens = np.full((50, LENGTH), 9, dtype=np.uint16)
    tokens[:, [0]], tokens[:, [20, 41, -1]] = tokenizer.cls_token_id, tokenizer.sep_token_id
    dataset = batches.MaskedWindows(Windows([tokens], ["a"]), batches.Masking(tokenizer, 1.0), seed=7)
    is_label = all_labels(dataset.__getitems__([(0, row) for row in range(50)])) != batches.IGNORE_INDEX
    assert (is_label == ~np.isin(np.arange(LENGTH), [0, 20, 41, LENGTH - 1])).all()


@pytest.mark.parametrize("processes", [1, 3, 7])
def test_validation_sees_every_row_once_and_always_under_the_same_mask(masked_windows, processes):
    loaders = [batches.validation_loader(masked_windows, 128, index, processes) for index in range(processes)]
    labels = [np.concatenate([all_labels(batch) for batch in loader]) for loader in loaders]
    whole = np.empty((ROWS, LENGTH), dtype=np.int64)
    for index in range(processes):
        whole[index::processes] = labels[index][: len(range(index, ROWS, processes))]
    assert len({len(each) for each in labels}) == len({len(loader) for loader in loaders}) == 1  # FSDP waits for all
    assert sum((each != batches.IGNORE_INDEX).sum() for each in labels) == (whole != batches.IGNORE_INDEX).sum()
    assert (whole == whole_epoch(masked_windows, epoch=0)[1]).all()


def test_random_streams_of_other_seeds_purposes_and_keys_differ():
    streams = [
        batches.random_stream(seed, purpose, *key).integers(2**63, size=2).tobytes()
        for seed in (0, 1)
        for purpose in (batches.ORDER, batches.MASK, batches.DROPOUT, batches.SPECIES_ORDER, batches.STREAM)
        for key in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(streams)) == len(streams)
    assert batches.random_stream(5, 1, 2, 3).random() == batches.random_stream(5, 1, 2, 3).random()
    long_stream = batches.random_stream(0, batches.MASK, 0, 0).integers(2**63, size=100_000)
    assert batches.random_stream(0, batches.MASK, 0, 1).integers(2**63) not in long_stream  # no overlap of rows


def test_dropout_seeds_differ_by_step_process_and_seed():
    seeds = {batches.dropout_seed(seed, step, index) for seed in (1, 2) for step in range(50) for index in range(4)}
    assert len(seeds) == 400
    assert batches.dropout_seed(1, 2, 3) == batches.dropout_seed(1, 2, 3)
    torch.manual_seed(max(seeds))  # torch takes them all
