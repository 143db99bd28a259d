"""What stops run_mlm.py: SIGTERM, a full disk, losses that are not finite. Nothing that was saved is lost.

pytest tests/test_run_mlm_interruptions.py
"""

import errno
import json
import os
import signal
import weakref

import pytest
import torch
from mlm_runs import arguments, column, metrics, results, run_here, small_corpus

import run_mlm
from dnabert2 import checkpoints
from dnabert2.errors import run_script


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("interruptions"))


@pytest.fixture(scope="module")
def whole(corpus):
    """The folder of a run that nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, *arguments(corpus, corpus.parent / "whole", validation_split_percentage=0))
    return corpus.parent / "whole"


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """A function that runs the script in this process, and gives the folder and what it ended with, if not well."""

    def run_with(**options):
        options = {"validation_split_percentage": 0} | options
        try:
            run_here(monkeypatch, *arguments(corpus, tmp_path / "run", **options))
        except SystemExit as error:
            return tmp_path / "run", error.code
        return tmp_path / "run", None

    return run_with


def at_step(monkeypatch, happens):
    """Has `happens(step, loss)` called after each step's gradients; what it returns is the loss."""
    training_step, steps = run_mlm.training_step, iter(range(1, 100))

    def step(*arguments):
        return happens(next(steps), training_step(*arguments))

    monkeypatch.setattr(run_mlm, "training_step", step)


def files(folder):
    return {path.name for path in folder.iterdir()}


def assert_same(one, other):
    assert metrics(one) == metrics(other)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


# --- SIGTERM -----------------------------------------------------------------------------------------------------


def test_a_script_that_fails_lets_go_of_what_it_holds():
    class Loader:
        """Would wait at the exit for workers that heed no SIGTERM."""

    held = []

    def main():
        loader = Loader()
        held.append(weakref.ref(loader))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run_script(main)
    assert raised.tb and held[0]() is None


def test_sigterm_saves_at_the_end_of_the_step_and_the_same_command_goes_on(run, whole, monkeypatch, capsys):
    def terminate(step, loss):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, terminate)
        folder, status = run(dataloader_num_workers=1)
    assert status == 143 and signal.getsignal(signal.SIGTERM) == before
    assert f"Stopped by SIGTERM: {folder / 'checkpoint-3'}" in capsys.readouterr().out
    assert files(folder) == {"arguments.json", "metrics.jsonl", "checkpoint-3"}
    assert run() == (folder, None)
    assert_same(folder, whole)


@pytest.mark.parametrize("sigterm_at", [None, 2])
def test_a_run_lets_go_of_its_model_before_it_ends_the_group_of_its_processes(run, monkeypatch, sigterm_at):
    """DDP would end that with the GIL, and could wait for ever for a thread of gloo that wants it."""
    prepare, end_training, models, alive = run_mlm.prepare, run_mlm.Accelerator.end_training, [], []

    def remember(accelerator, model, optimizer):
        prepared = prepare(accelerator, model, optimizer)
        models.append(weakref.ref(prepared[0]))
        return prepared

    def look(accelerator):
        alive.append(models[0]() is not None)
        end_training(accelerator)

    def terminate(step, loss):
        if step == sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(run_mlm, "prepare", remember)
    monkeypatch.setattr(run_mlm.Accelerator, "end_training", look)
    at_step(monkeypatch, terminate)
    assert run(max_train_steps=4)[1] == (143 if sigterm_at else None)
    assert alive == [False]


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["weights", "rename", "metrics", "model"])
def test_a_full_disk_ends_the_run_in_words_and_leaves_the_last_checkpoint(run, whole, monkeypatch, place):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(patch, owner, name, is_full):
        function = getattr(owner, name)

        def filled(*arguments, **options):
            if is_full(*arguments, **options):
                raise full
            return function(*arguments, **options)

        patch.setattr(owner, name, filled)

    with monkeypatch.context() as patch:
        if place == "weights":
            fill(patch, checkpoints, "save_file", lambda tensors, path: "checkpoint-4" in str(path))
        elif place == "rename":
            fill(patch, checkpoints, "publish", lambda temporary, folder: folder.name == "checkpoint-4")
        elif place == "metrics":
            fill(patch, json, "dumps", lambda values, **_: isinstance(values, dict) and values.get("step") == 4)
        else:
            fill(patch, checkpoints, "sync", lambda folder: folder.name == "model.tmp")
        folder, error = run(checkpointing_steps=2, save_total_limit=1)
    last = folder / ("checkpoint-6" if place == "model" else "checkpoint-2")
    assert error.startswith(
        f"error: {folder} cannot be written: {full}; the last whole checkpoint is {last}: make room"
    )
    assert files(folder) == {"arguments.json", "metrics.jsonl", last.name}
    if place != "rename":
        assert run(checkpointing_steps=2, save_total_limit=1) == (folder, None)
        assert_same(folder, whole)


# --- losses that are not finite ----------------------------------------------------------------------------------


def test_a_skipped_step_is_counted_and_a_resumed_run_counts_the_same(run, whole, monkeypatch):
    def break_twice(step, loss):
        return torch.full_like(loss, torch.nan) if step in (2, 5) else loss

    with monkeypatch.context() as patch:
        at_step(patch, break_twice)
        folder, _ = run(checkpointing_steps=3)
    assert column(folder, "skipped_steps") == [1, 1, 1, 2, 2] and len(column(folder, "loss")) == 4
    assert column(folder, "learning_rate") == column(whole, "learning_rate")  # the schedule goes on
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    last = (folder / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        at_step(patch, lambda step, loss: break_twice(step + 3, loss))
        run(checkpointing_steps=3, resume_from_checkpoint=folder / "checkpoint-3")
    assert column(folder, "skipped_steps") == [1, 1, 1, 2, 2]
    assert (folder / "model.safetensors").read_bytes() == last
    assert "skipped_steps" not in (whole / "metrics.jsonl").read_text()


def test_five_skipped_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(run, monkeypatch):
    at_step(monkeypatch, lambda step, loss: torch.full_like(loss, torch.inf) if step >= 4 else loss)
    folder, error = run(checkpointing_steps=2, logging_steps=3, max_train_steps=20)
    assert error == (
        "error: loss or gradients were not finite at 5 step(s) in a row, up to step 8: lower --learning_rate; "
        f"the last good checkpoint is {folder / 'checkpoint-2'}"
    )
    assert files(folder) == {"arguments.json", "metrics.jsonl", "checkpoint-2"}


def test_a_run_whose_last_step_is_skipped_keeps_the_weights_of_the_step_before_and_says_so(run, monkeypatch, capsys):
    at_step(monkeypatch, lambda step, loss: torch.full_like(loss, torch.nan) if step in (2, 4) else loss)
    folder, error = run(max_train_steps=4, checkpointing_steps=1, validation_split_percentage=10)
    assert error is None and "were skipped: the model is that of step 3; 2 step(s) were" in capsys.readouterr().out
    assert {name for name in files(folder) if "checkpoint" in name} == {"checkpoint-1", "checkpoint-3"}
    kept, last = (folder / path / "model.safetensors" for path in ("checkpoint-3", "."))
    assert kept.read_bytes() == last.read_bytes()
    assert results(folder)["skipped_steps"] == 2 and results(folder)["validation_loss"] < 10


def test_gradients_that_are_not_finite_are_skipped_too(run, monkeypatch, capsys):
    monkeypatch.setattr(run_mlm.Accelerator, "clip_grad_norm_", lambda *arguments: torch.tensor(torch.nan))
    folder, error = run(max_train_steps=2, checkpointing_steps=1)
    assert error is None and "the model is that of step 0; 2 step(s)" in capsys.readouterr().out  # its loss is finite
    assert "model.safetensors" in files(folder) and "checkpoint-1" not in files(folder)


def test_without_validation_a_last_loss_that_is_not_finite_ends_the_run(run, monkeypatch):
    at_step(monkeypatch, lambda step, loss: torch.full_like(loss, torch.nan) if step == 2 else loss)
    folder, error = run(max_train_steps=2, checkpointing_steps=1)
    assert error.startswith("error: loss or gradients were not finite at 1 step(s) in a row, up to step 2")
    assert files(folder) == {"arguments.json", "metrics.jsonl", "checkpoint-1"}


def test_a_rate_that_breaks_the_weights_saves_none_of_them(run):
    folder, error = run(max_train_steps=3, num_warmup_steps=0, learning_rate=1e30, checkpointing_steps=1)
    assert error.startswith("error: loss or gradients were not finite") and "lower --learning_rate" in error
    assert "model.safetensors" not in files(folder)
