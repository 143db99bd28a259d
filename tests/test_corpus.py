"""Sequence files to windows: nothing but the input's bases, no base on both sides, each file tokenised once.

pytest tests/test_corpus.py
"""

import gzip
import math
import shutil

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dnabert2 import corpus as corpus_module
from dnabert2.corpus import Corpus, Windows, prepare_corpus, region_bases, regions, unigram_baseline
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sequences import SequenceFileError
from dnabert2.tokenization import build_tokenizer, tokenizer_config


LENGTH = 32
SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


def random_bases(length, seed=0):
    return np.random.default_rng(seed).choice(list(b"ACGT"), length).astype(np.uint8).tobytes().decode()


def fasta(path, *sequences):
    path.write_text("".join(f">record{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """`prepare_corpus` of 32 tokens a window with a cache in tmp_path."""

    def prepared(*files, **options):
        defaults = {"tokenizer": tokenizer, "max_seq_length": LENGTH, "cache_dir": tmp_path / "cache"}
        return prepare_corpus(list(files), **defaults | options)

    return prepared


def all_tokens(windows):
    return windows[range(len(windows))] if len(windows) else np.empty((0, LENGTH), dtype=np.int64)


def decoded(windows, tokenizer):
    """The bases of every window."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in all_tokens(windows)]


def entries(tmp_path):
    """Name and time of the last change of every file in the cache."""
    return {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}


# --- windows -----------------------------------------------------------------------------------------------------


def test_windows_are_full_and_decode_to_the_bases_of_their_regions(prepare, tokenizer, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(30_000, seed=1), random_bases(777, seed=2).lower())
    corpus = prepare(path, validation_percentage=0)
    tokens = all_tokens(corpus.train)
    assert tokens.shape[1] == LENGTH and tokens.dtype == np.int64
    assert (tokens[:, 0] == tokenizer.cls_token_id).all() and (tokens[:, -1] == tokenizer.sep_token_id).all()
    assert not np.isin(tokens[:, 1:-1], tokenizer.all_special_ids).any()

    windows, kept, total = iter(decoded(corpus.train, tokenizer)), 0, 0
    for region in regions(path, LENGTH):
        encoded = tokenizer(region, add_special_tokens=False)["input_ids"]
        bases = "".join(next(windows) for _ in range(len(encoded) // (LENGTH - 2)))
        assert region.startswith(bases)
        rest = tokenizer(region[len(bases) :], add_special_tokens=False)["input_ids"]
        assert len(rest) <= LENGTH - 2  # what is dropped is less than a window (of other merges at the cut)
        kept, total = kept + len(bases), total + len(region)
    assert next(windows, None) is None
    assert corpus.total("bases") == total == 30_777
    assert kept > 0.9 * total


def test_regions_are_cut_at_every_letter_but_acgt(tmp_path):
    one, two, three = (random_bases(length, seed=length) for length in (500, 6000, 40))
    path = fasta(tmp_path / "a.fa", f"NNN{one}N{two}", f"{three}RY{one.lower()}")
    long = region_bases(LENGTH)
    assert list(regions(path, LENGTH)) == [one, two[:long], two[long:], three, one]


def test_no_window_spans_a_gap(prepare, tokenizer, tmp_path):
    runs = [random_bases(700, seed=seed) for seed in range(20)]
    gaps = ["N", "NNNNNNNNNN", "R", "nyk"] * 5
    corpus = prepare(
        fasta(tmp_path / "a.fa", "".join(run + gap for run, gap in zip(runs, gaps, strict=True))),
        validation_percentage=0,
    )
    windows = decoded(corpus.train, tokenizer)
    assert len(windows) > 60
    assert all(any(window in run for run in runs) for window in windows)


def test_no_base_is_both_in_training_and_in_validation(prepare, tokenizer, tmp_path):
    sequence = random_bases(300_000, seed=3)  # so random that a 60-mer occurs once
    corpus = prepare(fasta(tmp_path / "a.fa", sequence), validation_percentage=20)
    train, validation = (decoded(getattr(corpus, split), tokenizer) for split in SPLITS)
    place = {sequence[start : start + 60]: start for start in range(len(sequence) - 59)}
    assert len(place) == len(sequence) - 59

    def bases(windows):
        """The positions in the sequence of every base of every window."""
        return {place[window[:60]] + i for window in windows for i in range(len(window))}

    assert min(map(len, train + validation)) >= 60
    assert all(sequence[place[window[:60]] :].startswith(window) for window in train + validation)
    assert not bases(train) & bases(validation)
    in_training = {window[i : i + 60] for window in train for i in range(len(window) - 59)}
    assert not any(window[i : i + 60] in in_training for window in validation for i in range(len(window) - 59))


@pytest.mark.parametrize("percentage", [0, 1, 10, 50])
def test_the_share_of_validation_is_the_percentage(prepare, tmp_path, percentage):
    count = 200
    corpus = prepare(
        fasta(tmp_path / "a.fa", random_bases(count * region_bases(LENGTH))), validation_percentage=percentage
    )
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert share == pytest.approx(percentage / 100, abs=1.5 / count)


def test_small_files_have_their_turn_in_validation(prepare, tmp_path):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(2000, seed=i)) for i in range(60)]  # a region each
    corpus = prepare(*files, validation_percentage=30)
    held_out = sum(summary["windows"]["validation"] > 0 for summary in corpus.files)
    assert 5 <= held_out <= 33  # 18 expected, four standard deviations


def test_validation_files_are_validation_and_training_files_wholly_training(prepare, tokenizer, tmp_path):
    train, validation = (fasta(tmp_path / f"{seed}.fa", random_bases(20_000, seed=seed)) for seed in (1, 2))
    corpus = prepare(train, validation_files=[validation], validation_percentage=50)
    for windows, path in ((corpus.train, train), (corpus.validation, validation)):
        sequence = path.read_text().split("\n")[1]
        assert len(windows) > 100 and all(bases in sequence for bases in decoded(windows, tokenizer))
    assert len(corpus.train) == len(prepare(train, validation_percentage=0).train)


def test_a_file_for_training_and_validation_is_refused(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(5_000))
    copy = tmp_path / "b.fa"
    shutil.copy(path, copy)
    with pytest.raises(UsageError, match=r"b\.fa is for validation, and .*a\.fa, the same, for training"):
        prepare(path, validation_files=[copy])
    compressed = tmp_path / "c.fa.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UsageError, match=r"c\.fa\.gz is for validation, and .*a\.fa, the same, for training"):
        prepare(path, validation_files=[compressed])


def test_copies_of_a_file_are_split_alike(prepare, tmp_path):
    path, compressed = fasta(tmp_path / "a.fa", random_bases(60_000)), tmp_path / "b.fa.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    corpus = prepare(path, compressed, validation_percentage=20)
    for windows in (corpus.train, corpus.validation):
        first, second = windows.parts
        assert len(first) and (first == second).all()


def test_a_tokenizer_saved_with_truncation_and_padding_loses_nothing(prepare, tokenizer, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(20_000))
    expected = all_tokens(prepare(path).train)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    assert (all_tokens(prepare(path, cache_dir=tmp_path / "other").train) == expected).all()


# --- the cache ---------------------------------------------------------------------------------------------------


def test_a_second_call_tokenises_nothing(prepare, tmp_path, monkeypatch):
    path = fasta(tmp_path / "a.fa", random_bases(20_000))
    first, before = prepare(path), entries(tmp_path)
    monkeypatch.setattr(corpus_module, "prepare_file", None)
    again = prepare(path)
    assert entries(tmp_path) == before and len(before) == 3
    assert (all_tokens(again.train) == all_tokens(first.train)).all()
    assert again.fingerprint == first.fingerprint
    path = path.rename(tmp_path / "renamed.fa")
    prepare(path)
    assert entries(tmp_path) == before


def test_other_content_tokenizer_length_and_percentage_are_other_entries(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(20_000))
    small = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer([("A", "C"), ("G", "T")]),
        **{key: value for key, value in tokenizer_config().items() if key.endswith("_token")},
    )
    seen = {prepare(path).fingerprint}
    for options in ({"tokenizer": small}, {"max_seq_length": 16}, {"validation_percentage": 2.0}):
        seen.add(prepare(path, **options).fingerprint)
    fasta(path, random_bases(20_000, seed=9))
    seen.add(prepare(path).fingerprint)
    assert len(seen) == 5 and len(list((tmp_path / "cache").iterdir())) == 5


def test_an_entry_that_failed_half_way_is_absent_and_the_others_stay(prepare, tmp_path, monkeypatch):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(9_000 - 1000 * i, seed=i)) for i in range(3)]
    save = np.save

    def fail_in_the_second(file, array):
        save(file, array)
        if len(list((tmp_path / "cache").iterdir())) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", fail_in_the_second)
    with pytest.raises(OSError):
        prepare(*files)
    before = entries(tmp_path)
    assert {path.name for path in before} == {"train.npy", "validation.npy", "summary.json"} and len(before) == 3
    monkeypatch.undo()
    corpus = prepare(*files)
    assert len(corpus.train.parts) == 3 and all(len(part) for part in corpus.train.parts)
    assert before.items() <= entries(tmp_path).items()


def test_a_bad_file_leaves_those_before_it_valid(prepare, tmp_path):
    good, bad = fasta(tmp_path / "good.fa", random_bases(9_000)), fasta(tmp_path / "bad.fa", "MKLVE")
    with pytest.raises(SequenceFileError, match=r"bad\.fa"):
        prepare(good, bad)
    assert len(entries(tmp_path)) == 3


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_file_of_short_sequences_is_warned_of_and_alone_refused(prepare, tmp_path, caplog):
    short, long = fasta(tmp_path / "short.fa", "ACGT"), fasta(tmp_path / "long.fa", random_bases(9_000))
    assert len(prepare(short, long, validation_percentage=0).train)
    assert "short.fa: no sequence is long enough for a window of 32 tokens" in caplog.text
    assert "long.fa" not in caplog.text
    with pytest.raises(UsageError, match=r"short\.fa: no sequence is long enough"):
        prepare(short)
    with pytest.raises(UsageError, match=r"short\.fa: no sequence is long enough"):
        prepare(long, validation_files=[short])


def test_lengths_vocabularies_and_folders_that_cannot_be_are_refused(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(900))
    with pytest.raises(UsageError, match="at least 3"):
        prepare(path, max_seq_length=2)
    with pytest.raises(UsageError, match="16 bits"):
        prepare(path, tokenizer=range(2**16 + 1))
    with pytest.raises(UsageError, match="--cache_dir"):
        prepare(path, cache_dir=path)


# --- counts and rows ---------------------------------------------------------------------------------------------


def test_token_counts_are_those_of_the_windows(prepare, tokenizer, tmp_path):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(50_000, seed=i)) for i in range(2)]
    corpus = prepare(*files, validation_percentage=20)
    for split in SPLITS:
        inner = all_tokens(getattr(corpus, split))[:, 1:-1]
        assert (corpus.token_counts(split) == np.bincount(inner.ravel(), minlength=len(tokenizer))).all()
        assert corpus.token_counts(split).sum() == len(getattr(corpus, split)) * (LENGTH - 2)


def test_unigram_baseline_by_hand():
    counts = {"train": [0, 6, 2, 1], "validation": [0, 1, 3, 0]}
    corpus = Corpus(Windows([]), Windows([]), [{"token_counts": counts}], "")
    results = unigram_baseline(corpus)
    expected = -(1 * math.log(7 / 13) + 3 * math.log(3 / 13)) / 4  # one more of each of four tokens: 9 + 4
    assert results == {"unigram_loss": pytest.approx(expected), "most_frequent_token_accuracy": 0.25}


def test_windows_of_several_parts_equal_their_concatenation():
    parts = [
        np.arange(10 * start, 10 * stop, dtype=np.uint16).reshape(-1, 10) for start, stop in ((0, 3), (3, 3), (3, 9))
    ]
    windows, whole = Windows(parts), np.concatenate(parts)
    assert len(windows) == 9
    for rows in ([0], [2, 3], [8, 0, 5, 5, 3], list(range(9))):
        assert (windows[rows] == whole[rows]).all()


def test_compressed_files_give_the_same_windows(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(9_000))
    zipped = tmp_path / "a.fa.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = (prepare(file, validation_percentage=0) for file in (path, zipped))
    assert (all_tokens(plain.train) == all_tokens(packed.train)).all()
    assert plain.files[0] | {"name": ""} == packed.files[0] | {"name": ""}
    assert plain.files[0]["name"] == "a.fa"
