"""What run_mlm.py trains on: tables, species, strands, streams, datasets of the Hub; and what it shows of a run.

pytest tests/test_run_mlm_data.py
"""

import csv
import gzip
import random
import shutil
import subprocess
import sys
from functools import partial

import pytest
from hub_server import HubServer
from mlm_runs import DROPOUT, arguments, column, finish, metrics, results, run_here, small_corpus, start, unfinish
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnabert2 import streaming
from dnabert2.loading import ROOT


STREAMED = {"streaming": True, "validation_split_percentage": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("run_mlm_data"))


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """A function that runs the script in this process and gives the output folder; streams have small blocks."""
    loader = partial(streaming.StreamingLoader, block_tokens=256 * 32)
    monkeypatch.setattr(streaming, "StreamingLoader", loader)

    def run_with(name="run", **options):
        run_here(monkeypatch, *arguments(corpus, tmp_path / name, **options))
        return tmp_path / name

    return run_with


def assert_equal_runs(one, other):
    """The same weights, bit for bit, and the same losses."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(one) == metrics(other)


def resumed(run, first, step, name="resumed", **options):
    """A run of the same options that goes on from a copy of the first one's checkpoint, as if it had been killed."""
    folder = first.parent / name
    shutil.copytree(first / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(first / "metrics.jsonl", folder)
    return run(name, resume_from_checkpoint="latest", **options)


# --- species and strands -----------------------------------------------------------------------------------------


def test_species_strands_temperature_lengths_and_spans_go_through_a_resume_bit_for_bit(run, capsys):
    options = {"sampling_temperature": 5, "reverse_complement": True, "config_overrides": DROPOUT}
    options |= {"min_seq_length": 8, "mlm_span": 3}
    options |= {"max_train_steps": 20, "checkpointing_steps": 9, "eval_steps": 10}
    first = run("first", **options)
    assert "tokens on both strands of 4 species" in capsys.readouterr().out
    assert_equal_runs(first, resumed(run, first, 9, **options))


def test_short_sequences_of_a_table_fill_windows_and_are_validated_by_kingdom(run, tmp_path):
    table, draw = tmp_path / "gue.csv.gz", random.Random(1)
    with gzip.open(table, "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["dna", "label", "organism"])
        for i in range(600):  # 70 bases are half a window
            rows.writerow(["".join(draw.choices("ACGT", k=70)), i % 2, f"{'plant' if i % 3 else 'virus'}/{i % 7}"])
    folder = run(train_file=table, sequence_column="dna", species_column="organism", validation_split_percentage=20)
    found = results(folder)
    assert {f"validation_loss/{kingdom}" for kingdom in ("plant", "virus")} <= found.keys()
    assert found["validation"].keys() == {f"{'plant' if i % 3 else 'virus'}/{i % 7}" for i in range(21)}
    rows = (folder / "validation.md").read_text().splitlines()
    assert rows[2].startswith("| **all** |") and len(rows) == 2 + 1 + 2 + len(found["validation"])


def test_species_without_a_held_out_region_are_told(run, capsys):
    run(validation_split_percentage=0.01, max_train_steps=1)
    assert "to validate (none of 4 species: raise --validation_split_percentage" in capsys.readouterr().out


def test_shards_prepared_apart_are_found_by_the_run(run, tmp_path, capfd):
    options = {"cache_dir": tmp_path / "cache", "num_shards": 3}
    for index in (2, 0, 1):
        run(shard_index=index, **options)
        assert f"Shard {index} of 3 is prepared" in capfd.readouterr().out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    folder = run(cache_dir=tmp_path / "cache")
    assert "Tokenising" not in capfd.readouterr().err
    assert (folder / "model.safetensors").exists()


# --- streams and the Hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumed_is_the_uninterrupted_one_bit_for_bit(run, corpus, workers):
    options = {**STREAMED, "reverse_complement": True, "sampling_temperature": 2, "max_train_steps": 8}
    options |= {"validation_file": corpus / "delta.fa", "train_file": corpus / "[abg]*.fa", "checkpointing_steps": 3}
    options |= {"dataloader_num_workers": workers, "per_device_train_batch_size": 8, "eval_steps": 4}
    options |= {"config_overrides": DROPOUT, "min_seq_length": 16, "mlm_span": 2, "boundary_dropout": 0.5}
    first = run("first", **options)
    assert_equal_runs(first, resumed(run, first, 3, **options))


@pytest.mark.parametrize("streamed", [False, True])
def test_the_span_decides_which_tokens_are_masked(run, streamed):
    source = STREAMED if streamed else {"validation_split_percentage": 0}
    losses = [column(run(f"span-{span}", max_train_steps=1, mlm_span=span, **source), "loss") for span in (1, 4)]
    assert losses[0] != losses[1]


def test_a_stream_needs_as_many_workers_as_its_checkpoint(run):
    options = {**STREAMED, "max_train_steps": 3, "checkpointing_steps": 2}
    unfinish(run(**options))
    with pytest.raises(SystemExit) as error:
        run(**options, dataloader_num_workers=2, resume_from_checkpoint="latest")
    assert "--dataloader_num_workers" in error.value.code
    run(**options, resume_from_checkpoint="latest")


def test_a_stream_over_two_processes_resumes(corpus, tmp_path):
    options = {**STREAMED, "per_device_train_batch_size": 16, "max_train_steps": 4, "checkpointing_steps": 2}
    options |= {"config_overrides": DROPOUT}
    folder = tmp_path / "first"
    finish(start(*arguments(corpus, folder, **options), processes=2))
    again = tmp_path / "again"
    shutil.copytree(folder / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(folder / "metrics.jsonl", again)
    finish(start(*arguments(corpus, again, resume_from_checkpoint="latest", **options), processes=2))
    assert_equal_runs(folder, again)


@pytest.mark.parametrize("name", ["delta.fa", "other.fasta"])
def test_a_file_for_validation_is_not_streamed_for_training(run, corpus, tmp_path, name):
    shutil.copytree(corpus, tmp_path / "files")
    validation = shutil.copy(corpus / "delta.fa", tmp_path / "files" / name)
    options = {**STREAMED, "max_train_steps": 1, "validation_file": validation}
    training = tmp_path / "files" / "[abd]*.fa"
    with pytest.raises(SystemExit) as error:
        run(train_file=training, **options)
    trained = tmp_path / "files" / "delta.fa"
    assert error.value.code == (
        f"error: {validation} is for validation, and {trained}, the same, for training: leave it out of one of them"
    )
    run(train_file=tmp_path / "files" / "[abg]*.fa", **options)


def test_a_dataset_streamed_from_a_folder_is_not_validated_on_its_own_files(run, corpus, tmp_path):
    rows = ["sequence", *(path.read_text().split("\n", 1)[1].replace("\n", "") for path in corpus.glob("*.fa"))]
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.csv"
    file.write_text("\n".join(rows) + "\n")
    with pytest.raises(SystemExit) as error:
        run(train_file=None, dataset_name=tmp_path / "data", **STREAMED, max_train_steps=1, validation_file=file)
    assert "the same, for training" in error.value.code


@pytest.mark.parametrize("changed", ["train", "validation"])
def test_a_stream_goes_on_with_the_same_files_only(run, corpus, tmp_path, changed):
    shutil.copytree(corpus, tmp_path / "files")
    train, validation = tmp_path / "files" / "alpha.fa", tmp_path / "files" / "delta.fa"
    options = {**STREAMED, "train_file": train, "validation_file": validation}
    options |= {"max_train_steps": 2, "checkpointing_steps": 1}
    unfinish(run(**options))
    file = train if changed == "train" else validation
    text = file.read_text()
    file.write_text(text[:-9] + "".join("CA"[base == "C"] for base in text[-9:].strip()) + "\n")
    assert len(file.read_text()) == len(text)
    with pytest.raises(SystemExit) as error:
        run(**options, resume_from_checkpoint="latest")
    assert "is of a run on other sequences" in error.value.code
    file.write_text(text)
    run(**options, resume_from_checkpoint="latest")


def test_a_streamed_run_tells_what_it_knows_of_its_sources(run, corpus, tmp_path, capsys):
    options = {**STREAMED, "max_train_steps": 4}  # 4 steps of 32 x 30 tokens of 5 bases; 60,000 in the files
    run("plain", **options)
    told = capsys.readouterr().out
    assert "4 source(s) of 6.12e-05 GB as stored, streamed; about 0.31 epochs; validation: none (give" in told
    folder = tmp_path / "uneven"
    folder.mkdir()
    shutil.copy(corpus / "alpha.fa", folder)
    (folder / "three.fa").write_text(
        "".join((corpus / f"{name}.fa").read_text() for name in ("beta", "gamma", "delta"))
    )
    run("uneven", train_file=folder, sampling_temperature=2, **options)  # 19,200 bases in shares of 1 to √3
    assert "2 source(s) of 6.12e-05 GB as stored, streamed; each about 0.27 to 0.46 times" in capsys.readouterr().out
    packed = tmp_path / "alpha.fa.gz"
    packed.write_bytes(gzip.compress((corpus / "alpha.fa").read_bytes()))
    run("packed", train_file=packed, validation_file=corpus / "beta.fa", **options)
    told = capsys.readouterr().out
    assert "GB as stored, streamed; validation: " in told and "epochs" not in told


def test_species_of_a_table_are_those_of_validation_in_a_streamed_run(run, corpus, tmp_path):
    files = []
    for name in ("train", "validation"):
        draw = random.Random(name)
        rows = [f"{''.join(draw.choices('ACGT', k=300))},plant/{i % 3}" for i in range(60)]
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join(["sequence,species", *rows]) + "\n")
    options = {**STREAMED, "train_file": files[0], "species_column": "species", "max_train_steps": 2}
    for more in ({}, {"validation_file": files[1], "sampling_temperature": 2}):
        with pytest.raises(SystemExit) as error:
            run(**options, **more)
        assert "the species are the files (or shards): leave out --species_column" in error.value.code
    folder = run(**options, validation_file=files[1])
    assert results(folder)["validation"].keys() == {"plant/0", "plant/1", "plant/2"}
    # files without columns are streamed as well, and judged on such a table
    folder = run("fasta", **options | {"train_file": corpus}, validation_file=files[1])
    assert len(results(folder)["validation"]) == 3


def test_a_dataset_of_the_hub_is_trained_on_whole_and_streamed(corpus, tmp_path):
    rows = [["sequence", "species"]]
    for path in sorted(corpus.glob("*.fa")):
        sequence = path.read_text().split("\n", 1)[1].replace("\n", "")
        rows += [[sequence[i : i + 2000], f"fungi/{path.stem}"] for i in range(0, len(sequence), 2000)]
    content = "\n".join(map(",".join, rows)).encode()
    options = {"train_file": None, "dataset_name": "lab/genomes", "max_train_steps": 3}
    with HubServer() as hub:
        hub.add_repo("dataset", "lab/genomes", {"train.csv": content})
        environment = hub.environment(tmp_path) | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        for name, more in (("whole", {"species_column": "species"}), ("streamed", STREAMED)):
            command = arguments(corpus, tmp_path / name, **options, **more)
            done = subprocess.run(
                [sys.executable, str(ROOT / "run_mlm.py"), *command],
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert ("streamed; validation: none" if name == "streamed" else "tokens of 4 species") in done.stdout
            assert len(column(tmp_path / name, "loss")) == 3
    assert results(tmp_path / "whole")["validation"].keys() <= {f"fungi/{path.stem}" for path in corpus.glob("*.fa")}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dataset_name": "lab/genomes"}, "one of them, and not both"),
        ({"train_file": None}, "give --train_file or --dataset_name"),
        ({"train_file": "http://127.0.0.1/a.fa"}, "add --streaming"),
        ({**STREAMED, "num_train_epochs": 1, "max_train_steps": None}, "give --max_train_steps"),
        ({"num_shards": 2, "shard_index": 2}, "--shard_index must be from 0 to --num_shards - 1 = 1"),
        ({"sampling_temperature": 0}, "--sampling_temperature must be greater than 0"),
        ({"species_column": "species"}, "has no columns"),
        ({"with_tracking": True, "report_to": "nothing"}, "--report_to nothing: not installed"),
        ({"save_total_limit": 0}, "--save_total_limit must be greater than 0"),
    ],
)
def test_data_arguments_that_contradict_are_refused_in_one_line(run, options, told):
    with pytest.raises(SystemExit) as error:
        run(**options)
    message = error.value.code
    assert told in message and message.startswith("error: ") and "\n" not in message


# --- what is seen of a run ---------------------------------------------------------------------------------------


def test_trackers_get_the_metrics(run):
    folder = run(with_tracking=True, report_to="tensorboard", max_train_steps=3, eval_steps=2)
    events = EventAccumulator(str(folder / "pretraining")).Reload()
    for name in ("loss", "validation_loss"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        lines = {line["step"]: line[name] for line in metrics(folder) if name in line}
        assert logged == pytest.approx(lines)


def test_old_checkpoints_give_way_and_a_picture_and_the_outlook_are_there(run, capsys):
    folder = run(max_train_steps=22, checkpointing_steps=7, save_total_limit=2, logging_steps=2)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-14", "checkpoint-21"]
    assert load_file(folder / "checkpoint-14" / "model.safetensors")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Outlook" in capsys.readouterr().out
