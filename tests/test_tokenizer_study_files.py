"""The studies of tokenizers in benchmarks/: which files they take, and what they keep.

pytest tests/test_tokenizer_study_files.py
"""

import json
from argparse import Namespace
from pathlib import Path

import kmers
import numpy as np
import pytest
import tokenizer_runs
import vocabulary_size

from dnabert2.errors import UsageError
from dnabert2.loading import ROOT


def write_genome(path: Path, bases: int) -> Path:
    letters = np.random.default_rng([*path.name.encode()]).choice([*"ACGT"], size=bases)
    path.write_text(f">1\n{''.join(letters)}\n")
    return path


def study(*files: Path, pieces: int = 3, bases: int = 500) -> Namespace:
    return Namespace(sequence_file=[str(file) for file in files], pieces=pieces, bases=bases)


def test_every_file_is_a_species_whatever_its_name_and_small_ones_are_named(tmp_path, capsys):
    files = [write_genome(tmp_path / name, 200_000) for name in ("E.faecalis.fa", "E.faecium.fa")]
    species = kmers.sample_species(study(*files, write_genome(tmp_path / "small.fa", 3000)))
    assert list(species) == [f"{tmp_path.name}/{name}" for name in ("E.faecalis", "E.faecium")]
    assert {len(pieces) for pieces in species.values()} == {3}
    assert f"left out: {tmp_path.name}/small" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [write_genome(tmp_path / name, 5000) for name in ("twice.fa", "twice.fna")]
    with pytest.raises(UsageError, match=r"two files are .*/twice, .* rename"):
        kmers.sample_species(study(*files))


@pytest.mark.parametrize("words", [{"pieces": 1}, {"bases": 3}, {"bases": 3000}])
def test_pieces_that_give_no_table_are_refused(tmp_path, words):
    with pytest.raises(UsageError, match="--pieces must be 2 or more, and --bases 100 to 2,000"):
        kmers.sample_species(study(write_genome(tmp_path / "a.fa", 5000), **words))


def test_what_was_made_of_other_files_is_not_taken_for_that_of_these(tmp_path):
    files = [str(write_genome(tmp_path / f"{name}.fa", 1000)) for name in "ab"]
    kept = tmp_path / "kept"
    kmers.keep_arguments(kept, tmp_path, {"train_file": kmers.size_of(files)})  # and then ended before it was made
    kmers.keep_arguments(kept, tmp_path, {"train_file": kmers.size_of(files[:1])})
    kept.touch()
    kmers.keep_arguments(kept, tmp_path, {"train_file": kmers.size_of(files[:1])})
    with pytest.raises(UsageError, match=r"was 1 file\(s\) of 1,004 bytes, is 2 file\(s\) of 2,008 bytes"):
        kmers.keep_arguments(kept, tmp_path, {"train_file": kmers.size_of(files)})


def test_scores_are_only_of_vocabularies_named_by_their_size(tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps({"256-same-flops": {"score": [1.0]}}))
    with pytest.raises(UsageError, match="has no run of a vocabulary that is named by its size"):
        vocabulary_size.read_scores(tmp_path)


def arguments_of_runs(folder: Path) -> Namespace:
    (folder / "GUE" / "mouse" / "0").mkdir(parents=True)
    genome = write_genome(folder / "a.fa", 1000)
    return Namespace(
        tokenizers=[ROOT / "bpe_tokenizer"],
        same_flops_as=None,
        config_name=ROOT / "configs" / "tiny.json",
        data_dir=str(folder / "GUE"),
        tasks=["mouse/0"],
        train_file=[str(genome)],
    )


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("tokenizers", [ROOT / "bpe_tokenizer", Path("nope")], "nope/tokenizer.json does not exist"),
        ("same_flops_as", Path("nope"), "nope/tokenizer.json does not exist"),
        ("config_name", Path("nope.json"), "--config_name nope.json: no such file"),
        ("tasks", ["mouse/0", "tf/0"], "there is no folder tf/0 in it"),
        ("train_file", ["nope.fa"], "nope.fa"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_trained(tmp_path, name, value, message):
    args = arguments_of_runs(tmp_path)
    tokenizer_runs.check_files(args)
    setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        tokenizer_runs.check_files(args)


def test_the_last_that_a_script_says_is_told_if_it_ends_with_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"^run_mlm.py: nope: no such file.* \(all that it said: .*pretrained.log\)$"):
        tokenizer_runs.launch("run_mlm.py", {"train_file": "nope"}, tmp_path / "seed-42" / "pretrained")
