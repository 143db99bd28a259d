"""Sequence files to windows: nothing but the input's bases, no base on both sides, species apart.

pytest tests/test_corpus.py
"""

import gzip
import math
import shutil
from collections import Counter

import numpy as np
import pytest
from corpora import (
    LENGTH,
    SPLITS,
    all_tokens,
    decoded,
    entries,
    fasta,
    pieces_of,
    preparation,
    random_bases,
    sources_of,
    table,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnabert2.corpus import Corpus, prepare_corpus, unigram_baseline
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sequences import read_records
from dnabert2.windows import Windows, region_bases, regions, reverse_complement


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


@pytest.fixture
def prepare(tokenizer, tmp_path):
    return preparation(tokenizer, tmp_path / "cache")


# --- windows -----------------------------------------------------------------------------------------------------


def test_windows_are_full_and_decode_to_the_bases_of_their_regions(prepare, tokenizer, tmp_path):
    path = fasta(
        tmp_path / "a.fa", random_bases(29_000, seed=1), *(random_bases(177, seed=i).lower() for i in range(10))
    )
    corpus = prepare(path, validation_percentage=0)
    tokens = all_tokens(corpus.train)
    assert tokens.shape[1] == LENGTH and tokens.dtype == np.int64
    assert (tokens[:, 0] == tokenizer.cls_token_id).all() and (tokens[:, -1] == tokenizer.sep_token_id).all()
    others = set(tokenizer.all_special_ids) - {tokenizer.sep_token_id}
    assert not np.isin(tokens[:, 1:-1], list(others)).any()

    encoded = [
        tokenizer(region, add_special_tokens=False)["input_ids"] for _, region in regions(read_records(path), LENGTH)
    ]
    inner = LENGTH - 2
    whole = [ids[start : start + inner] for ids in encoded for start in range(0, len(ids) - inner + 1, inner)]
    pieces = [piece.tolist() for row in tokens for piece in pieces_of(row, tokenizer)]
    assert [piece for piece in pieces if len(piece) == inner] == whole
    left_over = [token for ids in encoded for token in ids[len(ids) // inner * inner :]]
    joined = [token for piece in pieces if len(piece) < inner for token in piece]
    assert joined == left_over[: len(joined)] and len(left_over) - len(joined) < inner
    assert len(joined) > 2 * inner  # it was worth it
    assert corpus.total("bases") == 30_770 and corpus.total("tokens") == sum(map(len, encoded))
    sequences = [record.sequence for record in read_records(path)]
    assert all(any(bases in sequence for sequence in sequences) for bases in decoded(corpus.train, tokenizer))


record_texts = st.lists(st.tuples(st.integers(1, 1_500), st.integers(0, 30)), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(record_texts, st.sampled_from([0, 20]))
def test_every_base_is_in_one_window_or_among_those_that_are_left_over_and_counted(
    tokenizer, tmp_path_factory, sizes, percentage
):
    """Every token of every region, as often as it is there: in windows, but for less than a window of each split."""
    folder = tmp_path_factory.mktemp("property")
    texts = ["N" * gap + random_bases(length, seed) for seed, (length, gap) in enumerate(sizes)]
    path = fasta(folder / "a.fa", random_bases(1_000, seed=99), *texts)
    options = {"tokenizer": tokenizer, "max_seq_length": LENGTH, "cache_dir": folder / "cache"}
    corpus = prepare_corpus(sources_of([path]), validation_percentage=percentage, **options)
    regions_of_file = [region for _, region in regions(read_records(path), LENGTH)]
    assert sum(map(len, regions_of_file)) == corpus.total("bases") == 1_000 + sum(length for length, _ in sizes)
    there = Counter(token for text in regions_of_file for token in tokenizer(text, add_special_tokens=False).input_ids)
    used = Counter(token for split in SPLITS for row in all_tokens(getattr(corpus, split)) for token in row.tolist())
    used = Counter({token: count for token, count in used.items() if token not in tokenizer.all_special_ids})
    assert used <= there and (there - used).total() == corpus.left_over() < 2 * (LENGTH - 2)


def test_short_sequences_are_joined(prepare, tokenizer, tmp_path):
    sequences = [random_bases(70, seed=seed) for seed in range(200)]  # 14 tokens or so: less than half a window
    corpus = prepare(fasta(tmp_path / "a.fa", *sequences), validation_percentage=20)
    pieces = [decoded(getattr(corpus, split), tokenizer) for split in SPLITS]
    assert all(any(piece in sequence for sequence in sequences) for piece in pieces[0] + pieces[1])
    tokens = sum(len(tokenizer(sequence, add_special_tokens=False)["input_ids"]) for sequence in sequences)
    used = sum(int(corpus.token_counts(split).sum()) for split in SPLITS)
    assert tokens - 2 * (LENGTH - 2) < used <= tokens == corpus.total("tokens")
    assert len(corpus.train) > 3 * len(corpus.validation) > 0


def test_no_window_spans_a_gap(prepare, tokenizer, tmp_path):
    runs = [random_bases(700, seed=seed) for seed in range(20)]
    gaps = ["N", "NNNNNNNNNN", "R", "nyk"] * 5
    corpus = prepare(
        fasta(tmp_path / "a.fa", "".join(run + gap for run, gap in zip(runs, gaps, strict=True))),
        validation_percentage=0,
    )
    pieces = decoded(corpus.train, tokenizer)
    assert len(corpus.train) > 60
    assert all(any(piece in run for run in runs) for piece in pieces)


class TenBases:
    """A tokenizer of ten bases a token that says which place of which strand each token is of: none comes twice."""

    cls_token_id, sep_token_id, all_special_ids = 0, 1, [0, 1, 2]
    cls_token = sep_token = mask_token = "present"

    def __init__(self, lengths):
        rng, self.ids, self.place, self.sequences = np.random.default_rng(5), {}, {}, []
        for length in lengths:
            words = []
            while len(words) < length // 10:
                word = "".join(rng.choice(list("ACGT"), 10))
                other = reverse_complement(word)
                if word != other and not {word, other} & self.ids.keys():
                    place = len(self.ids) // 2
                    for each in (word, other):
                        self.ids[each] = 3 + len(self.ids)
                        self.place[self.ids[each]] = place
                    words.append(word)
            self.sequences.append("".join(words))
        self.backend_tokenizer = self

    def __len__(self):
        return 3 + len(self.ids)

    def no_truncation(self): ...

    def no_padding(self): ...

    def to_str(self):
        return '{"normalizer": null}'

    def encode_batch_fast(self, sequences, add_special_tokens):
        assert not add_special_tokens
        return [self.Encoding([self.ids[s[i : i + 10]] for i in range(0, len(s), 10)]) for s in sequences]

    class Encoding:
        def __init__(self, ids):
            self.ids = ids


@pytest.mark.parametrize("both_strands", [False, True])
def test_no_base_is_both_in_training_and_in_validation_on_whatever_strand(prepare, tmp_path, both_strands):
    counting = TenBases([70_000, 5_120 * 2 + 310, *[150] * 300])
    path = fasta(tmp_path / "a.fa", *counting.sequences)
    corpus = prepare(path, tokenizer=counting, validation_percentage=20, both_strands=both_strands)
    tokens = [all_tokens(getattr(corpus, split))[:, 1:-1].ravel() for split in SPLITS]
    tokens = [of_split[of_split > 2].tolist() for of_split in tokens]
    places = [{counting.place[token] for token in of_split} for of_split in tokens]
    assert not places[0] & places[1]
    assert all(len(set(of_split)) == len(of_split) for of_split in tokens)  # nothing twice
    total = len(counting.ids) // 2
    assert total - 3 * LENGTH < len(places[0] | places[1]) <= total
    assert len(tokens[1]) == len(places[1]) > 0.1 * total  # the other strand is not validated
    assert (len(tokens[0]) > 1.99 * len(places[0]) - LENGTH) == both_strands


def test_no_piece_of_validation_occurs_in_training_on_either_strand(prepare, tokenizer, tmp_path):
    sequences = [random_bases(200_000, seed=3), *(random_bases(90, seed=seed) for seed in range(10, 410))]
    corpus = prepare(fasta(tmp_path / "a.fa", *sequences), validation_percentage=20, both_strands=True)
    train, validation = (decoded(getattr(corpus, split), tokenizer) for split in SPLITS)
    words = {piece[i : i + 24] for piece in train for i in range(len(piece) - 23)}  # so long that none comes twice
    held_out = {piece[i : i + 24] for piece in validation for i in range(len(piece) - 23)}
    assert len(held_out) > 20_000 and len(words) > 200_000
    assert not words & held_out and not words & {reverse_complement(word) for word in held_out}
    assert all(any(piece in s or reverse_complement(piece) in s for s in sequences) for piece in train[-200:])


def test_both_strands_are_for_training_alone_and_another_entry(prepare, tokenizer, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(60_000))
    one, both = (prepare(path, validation_percentage=20, both_strands=both) for both in (False, True))
    assert one.fingerprint != both.fingerprint and len(entries(tmp_path)) == 6
    assert (all_tokens(one.validation) == all_tokens(both.validation)).all()
    assert len(both.train) == pytest.approx(2 * len(one.train), rel=0.02)
    forward, sequence = all_tokens(one.train), path.read_text().split("\n")[1]
    assert (all_tokens(both.train)[: len(forward)] == forward).all()
    others = [
        tokenizer.decode(piece)
        for row in all_tokens(both.train)[len(forward) :]
        for piece in pieces_of(row, tokenizer)
    ]
    assert all(bases in reverse_complement(sequence) for bases in others)
    assert both.total("bases") == one.total("bases") == 60_000


def test_validation_files_have_one_entry_whichever_strands_are_trained_on(prepare, tmp_path):
    train, validation = (fasta(tmp_path / f"{seed}.fa", random_bases(20_000, seed=seed)) for seed in (1, 2))
    for both_strands in (False, True):
        prepare(train, validation_files=[validation], both_strands=both_strands)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_validation_files_alone_are_a_corpus(prepare, tokenizer, tmp_path):
    validation = fasta(tmp_path / "fungi" / "a.fa", random_bases(20_000))
    corpus = prepare(validation_files=[validation])
    assert len(corpus.train) == 0 and corpus.train.rows_by_species() == {}
    assert list(corpus.validation.rows_by_species()) == ["fungi/a"]
    assert corpus.token_counts("train").tolist() == [0] * len(tokenizer)
    assert corpus.token_counts("validation").sum() > 3000


def test_no_files_at_all_are_an_empty_corpus(prepare):
    corpus = prepare()  # of a stream without --validation_file
    assert len(corpus.train) == len(corpus.validation) == corpus.total("bases") == 0


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
    held_out = len(corpus.validation.rows_by_species())
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
    assert not list((tmp_path / "cache").iterdir())  # before anything was tokenised
    with pytest.raises(UsageError, match=r"b\.fa is for validation.*: leave it out of one of them"):
        prepare(path, validation_files=[copy], shard_index=1, num_shards=2)
    compressed = tmp_path / "c.fa.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UsageError, match=r"c\.fa\.gz is for validation, and .*a\.fa, the same, for training"):
        prepare(path, validation_files=[compressed])


def test_copies_of_a_file_are_split_alike(prepare, tmp_path):
    path, compressed = fasta(tmp_path / "a.fa", random_bases(60_000)), tmp_path / "b.fa.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    corpus = prepare(path, compressed, validation_percentage=20)
    for windows in (corpus.train, corpus.validation):
        assert windows.species == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]
        first, second = windows.parts
        assert len(first) and (first == second).all()


def test_a_tokenizer_saved_with_truncation_and_padding_loses_nothing(prepare, tokenizer, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(20_000))
    expected = all_tokens(prepare(path).train)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    assert (all_tokens(prepare(path, cache_dir=tmp_path / "other").train) == expected).all()


# --- what comes again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both_strands", [False, True])
def test_equal_records_are_on_one_side_on_whatever_strand(prepare, tokenizer, tmp_path, both_strands):
    sequences = [random_bases(400, seed=i) for i in range(50)]
    copies = [sequences[i] for i in np.random.default_rng(1).permutation(200) % 50]
    copies = [reverse_complement(copy) if i % 3 == 0 else copy for i, copy in enumerate(copies)]
    corpus = prepare(fasta(tmp_path / "a.fa", *copies), validation_percentage=20, both_strands=both_strands)
    train, validation = (decoded(getattr(corpus, split), tokenizer) for split in SPLITS)
    words = {piece[i : i + 24] for piece in train for i in range(len(piece) - 23)}
    held_out = {piece[i : i + 24] for piece in validation for i in range(len(piece) - 23)}
    assert not words & held_out and not words & {reverse_complement(word) for word in held_out}
    share = len(corpus.validation) / (len(corpus.validation) * (1 + both_strands) + len(corpus.train))
    assert share == pytest.approx(0.2 / (1 + both_strands), abs=0.05)  # of each as much as of those that differ


def test_a_record_repeated_200_times_is_not_both_trained_and_validated_on(prepare, tmp_path):
    for seed in range(5):
        corpus = prepare(fasta(tmp_path / f"{seed}.fa", *[random_bases(400, seed=seed)] * 200, random_bases(60_000)))
        rows = [{row.tobytes() for row in all_tokens(getattr(corpus, split))} for split in SPLITS]
        assert not rows[0] & rows[1]


def test_a_record_of_another_species_goes_where_it_went_before(prepare, tmp_path):
    sequences = [random_bases(1000, seed=i) for i in range(40)]
    again = [sequences[i] for i in np.random.default_rng(1).permutation(40)]
    rows = [(sequence, species) for species, those in (("a", sequences), ("b", again)) for sequence in those]
    corpus = prepare(table(tmp_path / "a.csv", *rows), species_column="species", validation_percentage=25)
    windows = [{row.tobytes() for row in all_tokens(getattr(corpus, split))} for split in SPLITS]
    assert not windows[0] & windows[1]
    for split in SPLITS:
        rows = getattr(corpus, split).rows_by_species()
        assert len(rows["a"]) == pytest.approx(len(rows["b"]), abs=2)


# --- species -----------------------------------------------------------------------------------------------------


def test_species_of_a_column_go_before_that_of_the_file_and_are_joined_over_files(prepare, tokenizer, tmp_path):
    sequences = {
        (file, species): [random_bases(1500, seed=hash_) for hash_ in range(10 * i, 10 * i + 8)]
        for i, (file, species) in enumerate([("a", "fungi/x"), ("a", "z"), ("b", "fungi/x"), ("b", "plants/y")])
    }
    for name in "ab":
        rows = [(s, species) for (file, species), those in sequences.items() if file == name for s in those]
        order = np.random.default_rng(1).permutation(len(rows))
        table(tmp_path / f"{name}.csv", *(rows[i] for i in order))
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    corpus = prepare(*files, species_column="species", validation_percentage=25)
    for split in SPLITS:
        windows = getattr(corpus, split)
        rows = windows.rows_by_species()
        assert set(rows) == {"fungi/x", "z", "plants/y"}
        for name, of_species in rows.items():
            part = Windows([windows[of_species.tolist()]], [name])
            own = [s for (_, species), those in sequences.items() if species == name for s in those]
            pieces = decoded(part, tokenizer)
            others = [piece for piece in pieces if not any(piece in s for s in own)]
            # Of left-overs of all species a file has one window or two, each of one species: see below.
            assert len(pieces) > 5 * len(others) and all(len(piece) < 250 for piece in others)
    assert len(corpus.train.rows_by_species()["fungi/x"]) == pytest.approx(2 * len(corpus.train) / 4, rel=0.1)
    without = prepare(*files, validation_percentage=25)
    assert list(without.train.rows_by_species()) == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_species_that_come_in_turns_have_each_their_share_of_validation(prepare, tmp_path):
    names = ["a", "b", "c", "d"]
    rows = [(random_bases(1000, seed=i), names[i % 4]) for i in range(160)]
    corpus = prepare(table(tmp_path / "a.csv", *rows), species_column="species", validation_percentage=25)
    train, validation = (getattr(corpus, split).rows_by_species() for split in SPLITS)
    assert set(validation) == set(names)
    for name in names:
        share = len(validation[name]) / (len(validation[name]) + len(train[name]))
        assert share == pytest.approx(0.25, abs=1.5 / 40)


@pytest.mark.parametrize("both_strands", [False, True])
def test_species_shorter_than_a_window_are_joined_and_less_than_a_window_is_lost(prepare, tmp_path, both_strands):
    counting = TenBases([60_000, *[150] * 500])  # 15 tokens each, half a window
    names = ["big", *(f"small/{i}" for i in range(500))]
    path = table(tmp_path / "a.csv", *zip(counting.sequences, names, strict=True))
    corpus = prepare(
        path, tokenizer=counting, species_column="species", both_strands=both_strands, validation_percentage=0
    )
    tokens = all_tokens(corpus.train)[:, 1:-1].ravel()
    tokens = tokens[tokens > 2].tolist()
    assert len(set(tokens)) == len(tokens) == corpus.token_counts("train").sum()
    assert len(tokens) > corpus.total("tokens") - (1 + both_strands) * (LENGTH - 2)
    rows = corpus.train.rows_by_species()
    small = {name: rows[name] for name in rows if name != "big"}
    assert 200 < len(small) <= 500 and len(rows["big"]) >= 199 * (1 + both_strands)
    first_places = dict(zip(names, np.cumsum([0, 6000, *[15] * 500]).tolist(), strict=False))
    for name, of_species in small.items():  # a window is of the species that its first token is of
        for row in corpus.train[of_species.tolist()]:
            assert 0 <= counting.place[int(row[1])] - first_places[name] < 15


def test_left_overs_of_species_are_joined_within_their_split_alone(prepare, tmp_path):
    counting = TenBases([150] * 400)
    rows = zip(counting.sequences, (f"s{i % 100}" for i in range(400)), strict=True)
    corpus = prepare(
        table(tmp_path / "a.csv", *rows), tokenizer=counting, species_column="species", validation_percentage=25
    )
    places = [
        {counting.place[token] // 15 for token in all_tokens(getattr(corpus, split)).ravel().tolist() if token > 2}
        for split in SPLITS
    ]
    assert not places[0] & places[1] and len(places[0] | places[1]) > 395  # of 400 sequences
    assert all(
        len(of_split) == pytest.approx(count, abs=4) for of_split, count in zip(places, (300, 100), strict=True)
    )


def test_a_source_whose_species_together_have_no_window_is_warned_of(prepare, tmp_path, caplog):
    short = table(tmp_path / "short.csv", (random_bases(20), "a"), (random_bases(20, seed=1), "b"))
    long = table(tmp_path / "long.csv", (random_bases(9_000), "a"))
    prepare(short, long, species_column="species")
    assert f"{short}: not enough bases" in caplog.text and str(long) not in caplog.text


def test_the_fingerprint_knows_which_files_are_of_one_species_but_not_its_name(prepare, tmp_path):
    for folder in ("1", "2"):
        fasta(tmp_path / folder / "yeast.fa", random_bases(9_000, seed=int(folder)))
    fingerprints = [prepare(tmp_path / "1", tmp_path / "2", validation_percentage=0).fingerprint]
    for folder in ("1", "2"):
        (tmp_path / folder / "yeast.fa").rename(tmp_path / folder / "rice.fa")
    fingerprints.append(prepare(tmp_path / "1", tmp_path / "2", validation_percentage=0).fingerprint)
    (tmp_path / "2" / "rice.fa").rename(tmp_path / "1" / "rice.fa.2.fa")
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "1" / "rice.fa.2.fa", tmp_path / "other" / "rice.fa")
    (tmp_path / "other" / "1").mkdir()  # a folder of the same name as the first one's: the same species
    shutil.move(tmp_path / "other" / "rice.fa", tmp_path / "other" / "1" / "rice.fa")
    same_species = prepare(tmp_path / "1", tmp_path / "other", validation_percentage=0)
    assert set(same_species.train.species) == {"1/rice"} and len(same_species.train.species) == 2
    fingerprints.append(same_species.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len(list((tmp_path / "cache").iterdir())) == 2


# --- counts and rows ---------------------------------------------------------------------------------------------


def test_token_counts_are_those_of_the_windows(prepare, tokenizer, tmp_path):
    sequences = [[random_bases(50_000, seed=i), *(random_bases(90, seed=90 + i) for i in range(99))] for i in range(2)]
    files = [fasta(tmp_path / f"{i}.fa", *sequences[i]) for i in range(2)]
    corpus = prepare(*files, validation_percentage=20)
    for split in SPLITS:
        tokens = all_tokens(getattr(corpus, split)).ravel()
        ordinary = tokens[~np.isin(tokens, tokenizer.all_special_ids)]
        assert (corpus.token_counts(split) == np.bincount(ordinary, minlength=len(tokenizer))).all()
        assert not corpus.token_counts(split)[tokenizer.all_special_ids].any()
        share = corpus.token_counts(split).sum() / (len(getattr(corpus, split)) * (LENGTH - 2))
        assert 0.95 < share < 1  # the rest are separators


def test_unigram_baseline_by_hand():
    counts = {"train": [0, 6, 2, 1], "validation": [0, 1, 3, 0]}
    corpus = Corpus(Windows([], []), Windows([], []), [{"token_counts": counts}], "")
    results = unigram_baseline(corpus)
    expected = -(1 * math.log(7 / 13) + 3 * math.log(3 / 13)) / 4  # one more of each of four tokens: 9 + 4
    assert results == {"unigram_loss": pytest.approx(expected), "most_frequent_token_accuracy": 0.25}


def test_compressed_files_give_the_same_windows(prepare, tmp_path):
    path = fasta(tmp_path / "a.fa", random_bases(9_000))
    zipped = tmp_path / "a.fa.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = (prepare(file, validation_percentage=0) for file in (path, zipped))
    assert (all_tokens(plain.train) == all_tokens(packed.train)).all()
    assert plain.files == packed.files
