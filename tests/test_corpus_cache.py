"""Tokenised sequences on disk: each file once, whatever interrupts it, by one machine or several.

pytest tests/test_corpus_cache.py
"""

import logging
import pickle
import shutil
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from corpora import LENGTH, SPLITS, all_tokens, entries, fasta, preparation, random_bases, table
from transformers import PreTrainedTokenizerFast

from dnabert2 import corpus as corpus_module
from dnabert2 import files as files_module
from dnabert2.corpus import prepare_corpus
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sequences import Record, SequenceFileError
from dnabert2.sources import Source
from dnabert2.tokenization import build_tokenizer, tokenizer_config
from dnabert2.windows import kingdom_of


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


@pytest.fixture
def prepare(tokenizer, tmp_path):
    return preparation(tokenizer, tmp_path / "cache")


# --- the cache ---------------------------------------------------------------------------------------------------


def test_a_second_call_tokenises_nothing(prepare, tmp_path, monkeypatch):
    path = fasta(tmp_path / "a.fa", random_bases(20_000))
    first, before = prepare(path), entries(tmp_path)
    monkeypatch.setattr(corpus_module, "prepare_source", None)
    again = prepare(path)
    assert entries(tmp_path) == before and len(before) == 3
    assert (all_tokens(again.train) == all_tokens(first.train)).all()
    assert again.fingerprint == first.fingerprint
    path = path.rename(tmp_path / "renamed.fa")
    renamed = prepare(path)
    assert entries(tmp_path) == before and renamed.fingerprint == first.fingerprint


def test_a_copy_under_another_name_is_another_species_of_the_same_entry(prepare, tmp_path):
    path = fasta(tmp_path / "fungi" / "yeast.R64.fa", random_bases(60_000))
    copy = tmp_path / "plants" / "rice.fa"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    first = prepare(path, validation_percentage=20)
    before = entries(tmp_path)
    second = prepare(copy, validation_percentage=20)
    assert entries(tmp_path) == before
    for split in SPLITS:
        assert list(getattr(first, split).rows_by_species()) == ["fungi/yeast.R64"]
        assert list(getattr(second, split).rows_by_species()) == ["plants/rice"]
    assert kingdom_of("plants/rice") == "plants"
    assert prepare(path, copy).train.species == ["fungi/yeast.R64"]  # together: read once, by the first one's name


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


# --- interruptions and shards ------------------------------------------------------------------------------------


def contents(tmp_path):
    return {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "cache").rglob("*.*")}


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_shards_in_any_order_are_what_a_call_without_them_finds(prepare, tmp_path, order, monkeypatch):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(6_000, seed=i)) for i in range(5)]
    held_out = [fasta(tmp_path / f"{i}.fa", random_bases(6_000, seed=i)) for i in range(5, 7)]
    counts = []
    for index in order:
        assert prepare(*files, validation_files=held_out, shard_index=index, num_shards=3) is None
        counts.append(len(list((tmp_path / "cache").iterdir())))
    shares = np.diff([0, *counts])
    assert counts[-1] == 7 and sorted(shares) == [2, 2, 3]
    found = contents(tmp_path)
    monkeypatch.setattr(corpus_module, "prepare_source", None)
    corpus = prepare(*files, validation_files=held_out)
    assert contents(tmp_path) == found
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")
    plain = prepare(*files, validation_files=held_out)
    assert contents(tmp_path) == found and plain.fingerprint == corpus.fingerprint


def test_an_interrupted_shard_goes_on_where_it_was(prepare, tmp_path, monkeypatch):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(6_000, seed=i)) for i in range(6)]
    calls, prepare_source = [], corpus_module.prepare_source

    def fails_at_the_second(source, *rest):
        calls.append(source.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        prepare_source(source, *rest)

    monkeypatch.setattr(corpus_module, "prepare_source", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(*files, shard_index=1, num_shards=2)
    before = entries(tmp_path)
    prepare(*files, shard_index=1, num_shards=2)
    assert before.items() <= entries(tmp_path).items()
    assert [name.rpartition("/")[2] for name in calls] == ["1", "3", "3", "5"]


def test_more_shards_than_files_leave_some_nothing_to_do_with_a_warning(prepare, tmp_path, caplog):
    caplog.set_level(logging.INFO, corpus_module.__name__)
    path = fasta(tmp_path / "a.fa", random_bases(6_000))
    assert prepare(path, shard_index=2, num_shards=3) is None
    assert not list((tmp_path / "cache").iterdir())
    prepare(path, shard_index=0, num_shards=3)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "shard 2 of 3 has 0 of 1 files"),
        ("INFO", "shard 0 of 3 has 1 of 1 files"),
    ]


def test_shards_share_bytes_out_not_files(prepare, tmp_path):
    lengths = [40_000, 2_000, 38_000, 3_000, 4_000, 5_000]  # every second file is small
    files = [fasta(tmp_path / f"{i}.fa", random_bases(length, seed=i)) for i, length in enumerate(lengths)]
    sizes = [0]
    for index in range(2):
        prepare(*files, shard_index=index, num_shards=2)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy")))
    first, second = np.diff(sizes)
    assert first == pytest.approx(second, rel=0.15)
    assert len(entries(tmp_path)) == 3 * 6


def test_an_entry_that_another_machine_published_meanwhile_is_left_alone(prepare, tmp_path, monkeypatch):
    path, cache = fasta(tmp_path / "a.fa", random_bases(9_000)), tmp_path / "cache"
    others, fsync = [], files_module.os.fsync

    def published_meanwhile(descriptor):
        if not others:
            (temporary,) = cache.iterdir()
            others.append(cache / temporary.name.partition(".tmp-")[0])
            shutil.copytree(temporary, others[0])
            others.append((others[0] / "train.npy").stat().st_ino)
        fsync(descriptor)

    monkeypatch.setattr(files_module.os, "fsync", published_meanwhile)
    corpus = prepare(path)
    assert len(corpus.train) and list(cache.iterdir()) == others[:1]
    assert (others[0] / "train.npy").stat().st_ino == others[1]


def test_windows_are_not_held_twice_while_they_are_written(tokenizer, tmp_path, monkeypatch):
    class Long(Source):
        def records(self):
            for seed in range(200):
                yield Record(str(seed), random_bases(10_000, seed), f"species{seed % 2}")

        def content_key(self):
            return "3" * 64

        def num_bytes(self):
            return None

    monkeypatch.setattr(corpus_module, "BATCH_BASES", 10_000)
    arguments = {"max_seq_length": 128, "cache_dir": tmp_path, "both_strands": True}
    tracemalloc.start()
    try:
        prepare_corpus([Long("a", "sequence", None)], tokenizer, **arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (stored,) = (path.stat().st_size for path in tmp_path.rglob("train.npy"))
    assert stored > 1_600_000 and peak < 1.2 * stored + 1_000_000  # the tokenizer's JSON, a batch


def test_an_entry_that_failed_half_way_is_absent_and_the_others_stay(prepare, tmp_path, monkeypatch):
    files = [fasta(tmp_path / f"{i}.fa", random_bases(9_000 - 1000 * i, seed=i)) for i in range(3)]
    save = corpus_module._save_rows

    def fail_in_the_second(*arguments):
        save(*arguments)
        if len(list((tmp_path / "cache").iterdir())) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(corpus_module, "_save_rows", fail_in_the_second)
    with pytest.raises(OSError):
        prepare(*files)
    before = entries(tmp_path)
    assert {path.name for path in before} == {"train.npy", "validation.npy", "summary.json"} and len(before) == 3
    monkeypatch.undo()
    corpus = prepare(*files)
    assert len(corpus.train.parts) == 3 and all(len(part) for part in corpus.train.parts)
    assert before.items() <= entries(tmp_path).items()


def test_a_source_may_be_anything_with_records(prepare, tokenizer, tmp_path):
    class Two(Source):
        def records(self):
            yield Record("1", random_bases(3000, seed=1), "fungi/x")
            yield Record("2", random_bases(3000, seed=2))

        def content_key(self):
            return "2" * 64

        def num_bytes(self):
            return None

    source = Two("a/b", "sequence", None)
    corpus = prepare_corpus(
        [source], tokenizer, max_seq_length=LENGTH, cache_dir=tmp_path / "cache", validation_percentage=0
    )
    assert list(corpus.train.rows_by_species()) == ["fungi/x", "a/b"]


def test_a_bad_file_leaves_those_before_it_valid(prepare, tmp_path):
    good, bad = fasta(tmp_path / "good.fa", random_bases(9_000)), fasta(tmp_path / "bad.fa", "MKLVE")
    with pytest.raises(SequenceFileError, match=r"bad\.fa"):
        prepare(good, bad)
    assert len(entries(tmp_path)) == 3


# --- files that are open -----------------------------------------------------------------------------------------


def test_more_files_than_may_be_open_are_opened_nevertheless(prepare, tmp_path):
    resource = pytest.importorskip("resource")
    files = [fasta(tmp_path / f"{i}.fa", random_bases(4_000, seed=i)) for i in range(60)]
    prepare(*files, validation_percentage=20)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(files[0]) as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 40, limits[1]))
    try:
        corpus = prepare(*files, validation_percentage=20)
        assert len(corpus.train.parts) + len(corpus.validation.parts) == 60
        assert all(all_tokens(getattr(corpus, split)).any(axis=1).all() for split in SPLITS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_pickle_of_windows_holds_their_places_alone(prepare, tmp_path):
    rows = [(random_bases(30_000, seed=i), f"species{i % 4}") for i in range(8)]
    corpus = prepare(table(tmp_path / "a.csv", *rows), species_column="species", validation_percentage=10)
    assert len(corpus.train) > 1000
    for split in SPLITS:
        windows = getattr(corpus, split)
        pickled = pickle.dumps(windows)
        assert len(pickled) < 10_000
        again = pickle.loads(pickled)
        assert (all_tokens(again) == all_tokens(windows)).all() and again.species == windows.species


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_file_too_short_for_a_window_is_warned_of_by_name_and_alone_refused(prepare, tmp_path, caplog):
    short, long = fasta(tmp_path / "short.fa", "ACGT"), fasta(tmp_path / "long.fa", random_bases(9_000))
    assert len(prepare(short, long, validation_percentage=0).train)
    assert f"{short}: not enough bases for a single window of 32 tokens" in caplog.text
    assert str(long) not in caplog.text
    with pytest.raises(UsageError, match=r"short\.fa: not enough bases for a single window of 32 tokens"):
        prepare(short)
    with pytest.raises(UsageError, match=r"short\.fa: not enough bases for a single window of 32 tokens"):
        prepare(long, validation_files=[short])
    renamed = short.rename(tmp_path / "renamed.fa")  # the entry is of its content, the warning of its name
    prepare(renamed, long, validation_percentage=0)
    assert f"{renamed}: not enough bases" in caplog.text


def test_lengths_vocabularies_and_folders_that_cannot_be_are_refused(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(900))
    with pytest.raises(UsageError, match="at least 3"):
        prepare(path, max_seq_length=2)
    with pytest.raises(UsageError, match="16 bits"):
        prepare(path, tokenizer=range(2**16 + 1))
    with pytest.raises(UsageError, match="--cache_dir"):
        prepare(path, cache_dir=path)
