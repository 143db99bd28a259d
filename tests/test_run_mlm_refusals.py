"""What run_mlm.py refuses: one line that names the cause and no stack trace, and what was written stays.

pytest tests/test_run_mlm_refusals.py
"""

import os
import shutil
import subprocess
import sys

import pytest
from mlm_runs import NO_DROPOUT, arguments, metrics, run_here, small_corpus, unfinish
from models import ROOT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("refusals"))


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """A function that runs the script in this process on tmp_path/run."""

    def run_with(environment=None, **options):
        options = {"output_dir": tmp_path / "run"} | options
        run_here(monkeypatch, *arguments(corpus, **options), **(environment or {}))

    return run_with


def refusal(run, *positional, **options):
    """The one line with which the script ends; `sys.exit` of a text is exit status 1 and the text on stderr."""
    with pytest.raises(SystemExit) as error:
        run(*positional, **options)
    message = error.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_train_steps": 0}, "--max_train_steps must be greater than 0, is 0"),
        ({"num_train_epochs": 2}, "--max_train_steps or --num_train_epochs, not both"),
        ({"num_train_epochs": float("nan"), "max_train_steps": None}, "--num_train_epochs"),
        ({"attn_implementation": "flex_attention"}, "flex_attention has no backward pass on a CPU"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2 needs accelerate launch --mixed_precision"),
        ({"learning_rate": -1e-4}, "--learning_rate must be greater than 0, is -0.0001"),
        ({"learning_rate": float("inf")}, "--learning_rate"),
        ({"weight_decay": float("nan")}, "--weight_decay"),
        ({"adam_beta2": 1.0}, "--adam_beta2 must be from 0 to below 1"),
        ({"adam_epsilon": 0}, "--adam_epsilon"),
        ({"seed": 2**32}, "--seed must be from 0 to 2^32 - 1"),
        ({"seed": -1}, "--seed"),
        ({"mlm_probability": 1.5}, "--mlm_probability must be above 0 and at most 1"),
        ({"mlm_probability": float("nan")}, "--mlm_probability"),
        ({"mlm_span": 0}, "--mlm_span must be greater than 0, is 0"),
        ({"mlm_span": 31, "max_seq_length": 32}, "--mlm_span 31 is longer"),
        ({"boundary_dropout": 1.5}, "--boundary_dropout must be from 0 to 1, is 1.5"),
        ({"validation_split_percentage": 100}, "--validation_split_percentage"),
        ({"validation_file": "a.fa"}, "--validation_split_percentage holds regions of prepared training files out"),
        ({"validation_split_percentage": 0, "eval_steps": 2}, "--eval_steps has nothing to validate on"),
        ({"sampling_temperature": 0.5}, "--sampling_temperature must be at least 1"),
        ({"total_train_batch_size": 40}, "--total_train_batch_size 40 is not a multiple of 32"),
        ({"checkpointing_steps": 0}, "--checkpointing_steps"),
        ({"num_warmup_steps": -1}, "--num_warmup_steps"),
        ({"num_warmup_steps": 7}, "--num_warmup_steps 7 are more than the 6 steps"),
        ({"max_seq_length": 2}, "--max_seq_length must be at least 3, is 2"),
        ({"min_seq_length": 0}, "--min_seq_length must be greater than 0, is 0"),
        ({"min_seq_length": 1}, "--min_seq_length 1: 32 halved again and again does not give 3"),
        ({"min_seq_length": 24}, "--min_seq_length 24: 32 halved again and again does not give 24"),
        ({"max_seq_length": 100_000}, "not enough bases for a single window of 100000 tokens"),
        ({"train_file": "absent.fa"}, "absent.fa: no such file"),
        ({"validation_file": "absent.fa", "validation_split_percentage": None}, "absent.fa: no such file"),
        ({"config_name": "absent.json"}, "absent.json"),
        ({"config_overrides": "hidden_size=65"}, "must be a multiple of num_attention_heads"),
        ({"config_overrides": "hiden_size=64"}, "hiden_size"),
        ({"tokenizer_name": "absent"}, "absent"),
        ({"model_name_or_path": "absent", "config_name": None, "config_overrides": None}, "absent"),
        ({"cache_dir": ROOT / "setup.cfg"}, "--cache_dir"),
        ({"output_dir": ROOT / "setup.cfg"}, "--output_dir"),
        ({"resume_from_checkpoint": "absent"}, "--resume_from_checkpoint absent: no checkpoint"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_in_one_line(run, tmp_path, options, told):
    assert told in refusal(run, **options)
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (">protein x\nMKVLLAGFEE\n", "record 1 (protein), position 4: 'L' is not a nucleotide letter"),
        ("", "the file is empty"),
        (">a\n>b\n", "all 2 records are empty"),
        ("ACGT\n", "line 1"),
        (">short\nACGT\n", "not enough bases for a single window of 32 tokens"),
    ],
)
def test_bad_sequence_files_are_refused_by_name_and_place(run, tmp_path, content, told):
    file = tmp_path / "bad.fa"
    file.write_text(content)
    message = refusal(run, train_file=file)
    assert told in message and "bad.fa" in message


def test_schedules_that_need_more_than_steps_are_no_choice(run, capsys):
    with pytest.raises(SystemExit) as error:
        run(lr_scheduler_type="reduce_lr_on_plateau")
    assert error.value.code == 2 and "invalid choice: 'reduce_lr_on_plateau'" in capsys.readouterr().err
    run(lr_scheduler_type="cosine", max_train_steps=2)


def test_a_refusal_is_one_line_on_stderr_and_exit_status_1(corpus, tmp_path):
    command = [sys.executable, str(ROOT / "run_mlm.py"), *arguments(corpus, tmp_path / "run", train_file="absent.fa")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: absent.fa: no such file")
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_sizes_of_a_new_model_are_refused_with_a_pretrained_one(run):
    message = refusal(run, config_name=None, model_name_or_path="output/model")
    assert "--config_overrides are for new models" in message


# --- runs that are there already ---------------------------------------------------------------------------------


def test_a_folder_with_another_run_is_refused_and_a_finished_one_stays(run, tmp_path, capsys):
    run(max_train_steps=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert "run is of another run (--max_train_steps was 1, is 2)" in refusal(run, max_train_steps=2)
    run(max_train_steps=1)
    assert "finished: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_resuming_with_what_makes_another_run_is_refused(run, corpus, tmp_path):
    sequences = tmp_path / "a.fa"
    shutil.copy(corpus / "alpha.fa", sequences)
    options = {"train_file": sequences, "max_train_steps": 3, "checkpointing_steps": 2}
    run(**options)
    changed = {"learning_rate": 1e-3, "seed": 7, "config_overrides": f"{NO_DROPOUT},num_hidden_layers=1"}
    message = refusal(run, **options | changed)
    assert "run is of another run" in message
    assert "--learning_rate was 0.005, is 0.001" in message and "--seed was 42, is 7" in message
    assert "--config_overrides was" in message and "max_seq_length" not in message
    message = refusal(run, {"ACCELERATE_MIXED_PRECISION": "bf16"}, **options)
    assert "--mixed_precision was no, is bf16" in message

    unfinish(tmp_path / "run")
    run(**options, logging_steps=2, dataloader_num_workers=1, eval_steps=1)  # these change no result
    unfinish(tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-2" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "checkpoint-2/optimizer.safetensors is missing or damaged" in refusal(run, **options)
    sequences.write_text(sequences.read_text() + "ACGT\n")
    assert "have changed since" in refusal(run, **options)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
