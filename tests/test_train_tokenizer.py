"""Training a vocabulary: reproducible, within its budget, honest about memory, clear about mistakes.

pytest tests/test_train_tokenizer.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import train_tokenizer
from dnabert2.errors import UsageError, run_script
from dnabert2.tokenization import PIECE_LENGTH, acgt_pieces, build_tokenizer, piece_rank, read_pieces, train_merges


ROOT = Path(__file__).resolve().parent.parent


def random_bases(length: int, seed: int) -> str:
    """Bases of a skewed composition with a motif in them, so that there is something to merge."""
    generator = np.random.default_rng(seed)
    bases = "".join(generator.choice(list("ACGT"), size=length, p=[0.4, 0.1, 0.1, 0.4]))
    return bases.replace("AAAA", "GATTACAG")


@pytest.fixture(scope="module")
def genomes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "genomes"
    folder.mkdir()
    for name, length in (("large", 400_000), ("small", 60_000)):
        sequence = random_bases(length, seed=length)
        (folder / f"{name}.fa").write_text(f">{name}\n{sequence}NNNN{sequence[:5000].lower()}\n")
    return folder


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train_tokenizer.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def trained(genomes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    done = run("--train_file", genomes, "--vocab_size", 128, "--max_bases", 200_000, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    assert "GB of memory" in done.stdout
    return folder


def test_the_four_files_are_written_and_nothing_else(trained):
    expected = ["report.md", "token_lengths.png", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(os.listdir(trained)) == expected
    assert (trained / "token_lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_vocabulary_has_exactly_the_size_asked_for(trained):
    vocabulary = Tokenizer.from_file(str(trained / "tokenizer.json")).get_vocab()
    assert sorted(vocabulary.values()) == list(range(128))


def test_the_report_names_files_without_folders(trained, genomes):
    report = (trained / "report.md").read_text()
    assert "--train_file genomes/" in report and "| large.fa | `" in report and "| small.fa | `" in report
    assert str(genomes.parent) not in report and str(trained.parent) not in report


def test_same_input_and_seed_give_the_same_bytes(trained, genomes, tmp_path):
    arguments = ["--train_file", genomes, "--vocab_size", 128, "--max_bases", 200_000, "--output_dir", tmp_path]
    assert run(*arguments, PYTHONHASHSEED="12345", RAYON_NUM_THREADS="1").returncode == 0
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_the_order_of_the_pieces_does_not_change_the_merges():
    pieces = list(acgt_pieces(random_bases(200_000, seed=1)))
    assert train_merges(pieces, 300) == train_merges(pieces[::-1], 300)


def test_ties_go_to_the_tokens_made_first():
    # AC, CA, GT and TG are equally frequent: the ids of A C G T decide, not the order of appearance.
    assert train_merges(["TG", "GT", "CA", "AC"] * 3, 14) == [("A", "C"), ("C", "A"), ("G", "T"), ("T", "G")]


def test_held_out_pieces_are_in_no_file_s_training(genomes):
    files = [train_tokenizer.count_file(path, seed=1) for path in sorted(genomes.iterdir())]
    train_tokenizer.set_rank_limits(files, 0.2, 10**9, 2.0)
    for file in files:
        held_out = set(read_pieces(file.path, 1, high=0.2))
        trained_on = set(read_pieces(file.path, 1, 0.2, file.rank_limit))
        everything = set(read_pieces(file.path, 1))
        assert held_out.isdisjoint(trained_on) and held_out | trained_on == everything


def test_the_seed_and_the_bases_alone_decide_the_rank():
    piece = random_bases(PIECE_LENGTH, seed=1)
    assert piece_rank(piece, 42) == piece_rank(piece, 42) != piece_rank(piece, 43)
    ranks = [piece_rank(random_bases(50, seed), 0) for seed in range(400)]
    assert 0.01 < np.mean(np.array(ranks) < 0.05) < 0.1 and 0.45 < np.mean(ranks) < 0.55


@given(st.text("ACGTN", max_size=200))
def test_pieces_are_all_the_bases_in_order(sequence):
    assert "".join(acgt_pieces(sequence)) == sequence.replace("N", "")


def test_the_budget_is_kept_and_nearly_used(genomes):
    files = [train_tokenizer.count_file(path, seed=1) for path in sorted(genomes.iterdir())]
    train_tokenizer.set_rank_limits(files, 0.05, 200_000, 2.0)
    used = [file.bases_ranked(0.05, file.rank_limit) for file in files]
    assert 180_000 < sum(used) <= 200_000
    for file, bases in zip(files, used, strict=True):
        assert sum(len(piece) for _, piece in read_pieces(file.path, 1, 0.05, file.rank_limit)) == bases


bases_of_files = st.lists(st.integers(0, 10**9), min_size=1, max_size=20).map(np.array)


@given(bases_of_files, st.integers(1, 10**10), st.floats(0.5, 50))
def test_no_share_exceeds_its_file_and_all_together_make_the_budget(bases, max_bases, temperature):
    shares = train_tokenizer.share_budget(bases, max_bases, temperature)
    assert (shares <= bases * (1 + 1e-9)).all() and (shares >= 0).all()
    assert shares.sum() == pytest.approx(min(max_bases, bases.sum()), rel=1e-6)


def test_temperature_evens_the_shares_out():
    bases = np.array([100_000_000, 1_000_000])
    assert train_tokenizer.share_budget(bases, 1_010_000, 1.0) == pytest.approx([1_000_000, 10_000])
    assert train_tokenizer.share_budget(bases, 1_100_000, 2.0) == pytest.approx([1_000_000, 100_000])
    assert train_tokenizer.share_budget(bases, 10_000_000, 2.0) == pytest.approx([9_090_909, 909_091])
    assert train_tokenizer.share_budget(bases, 20_000_000, 2.0) == pytest.approx([19_000_000, 1_000_000])


def test_what_does_not_fit_in_memory_is_refused_with_what_does(monkeypatch):
    monkeypatch.setattr(train_tokenizer, "available_memory", lambda: 65_000_000)
    train_tokenizer.check_memory(1_000_000)
    with pytest.raises(UsageError, match=r"--max_bases 1000000$"):
        train_tokenizer.check_memory(1_000_001)


def test_free_memory_is_some_and_no_more_than_the_machine_has():
    assert 0 < train_tokenizer.available_memory() <= psutil.virtual_memory().total


def test_two_merges_may_spell_the_same_token():
    tokenizer = build_tokenizer([("A", "A"), ("AA", "A"), ("A", "AA"), ("C", "C")])
    assert tokenizer.get_vocab_size() == 13 and tokenizer.token_to_id("CC") == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab_size", "10"], "too small: 10 entries are taken"),
        (["--vocab_size", "many"], "invalid int value: 'many'"),
        (["--max_bases", "0"], "must be above 0"),
        (["--sampling_temperature", "0"], "must be above 0"),
        (["--sampling_temperature", "nan"], "must be above 0"),
        (["--holdout_percentage", "100"], "below 100"),
        (["--train_file", "absent.fa"], "absent.fa: no such file"),
        (["--output_dir", os.devnull], "cannot be made: File exists"),
        (["--vocab_size", "100000"], "give only"),
    ],
)
def test_mistakes_end_in_one_line_and_no_file(genomes, tmp_path, monkeypatch, capsys, arguments, message):
    given_ones = ["--train_file", str(genomes / "small.fa"), "--output_dir", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *given_ones])
    with pytest.raises(SystemExit) as error:
        run_script(train_tokenizer.main)
    assert error.value.code not in (0, None)
    assert message in f"{error.value.code}{capsys.readouterr().err}" and "\n" not in str(error.value.code)
    assert not list(tmp_path.glob("out/*"))


def test_a_bad_record_ends_the_script_with_its_place(tmp_path):
    (tmp_path / "protein.fa").write_text(">p\nMKLE\n")
    done = run("--train_file", tmp_path / "protein.fa", "--output_dir", tmp_path / "out")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "protein.fa: record 1 (p), position 3: 'L' is not a nucleotide letter" in done.stderr
