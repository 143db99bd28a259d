"""A fine-tuning that was interrupted goes on from its last whole state and ends bit for bit as one that was not.

pytest tests/test_run_state.py
"""

import itertools
import os
import signal

import pytest
import torch
from gue_runs import SIZES, command, lines, results, run_here, save_base, write_task

import run_gue
from dnabert2 import finetuning, run_state
from dnabert2.checkpoints import MetricsFile


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    write_task(folder / "task", rows=(61, 23, 27))
    save_base(folder / "base", f"{SIZES},hidden_dropout_prob=0.1,attention_probs_dropout_prob=0.1")
    return folder


def options_of(folder, name, **options):
    values = {"model_name_or_path": folder / "base", "data_dir": folder / "task", "output_dir": folder / name}
    return command(**values, save_model=True, max_train_steps=14, **options)


def kill_at_step(patch, step):
    write = MetricsFile.write

    def killing(self, **values):
        if values["step"] == step:
            raise Killed
        write(self, **values)

    patch.setattr(MetricsFile, "write", killing)


def kill_in_second_state(patch):
    publish, published = run_state.publish, []

    def killing(temporary, folder):
        published.append(folder)
        if len(published) == 2:
            raise Killed
        publish(temporary, folder)

    patch.setattr(run_state, "publish", killing)


def killed(monkeypatch, *parts, kill):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch)
        run_here(monkeypatch, *parts)


@pytest.mark.parametrize(
    ("name", "options", "kill", "left"),
    [
        ("before", {}, lambda patch: kill_at_step(patch, 3), None),  # nothing was evaluated nor written yet
        ("no_best", {}, lambda patch: kill_at_step(patch, 5), 4),  # a state without a best step
        ("step", {"use_lora": True}, lambda patch: kill_at_step(patch, 11), 8),
        ("state", {"reverse_complement": True}, kill_in_second_state, 4),
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(folder, monkeypatch, name, options, kill, left):
    run_here(monkeypatch, *options_of(folder, f"{name}-whole", **options))
    parts = options_of(folder, name, checkpointing_steps=4, **options)
    killed(monkeypatch, *parts, kill=kill)
    run = folder / name / "task/seed-1"
    states = [path.name for path in run.glob("checkpoint-*") if path.suffix != ".tmp"]
    assert states == ([f"checkpoint-{left}"] if left else [])
    run_here(monkeypatch, *parts)
    whole = folder / f"{name}-whole" / "task/seed-1"
    weights = "adapter_model.safetensors" if "use_lora" in options else "model.safetensors"
    for file in (weights, "metrics.jsonl", "predictions.csv"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert results(run)["dev"] == results(whole)["dev"] and len(lines(run)) == 14
    assert results(run)["resumed_at_step"] == left
    assert not [*run.glob("checkpoint-*")]


def test_a_state_of_other_arguments_is_refused_and_one_of_a_finished_run_removed(folder, monkeypatch):
    parts = options_of(folder, "other", checkpointing_steps=4)
    killed(monkeypatch, *parts, kill=lambda patch: kill_at_step(patch, 6))
    with pytest.raises(SystemExit) as error:
        run_here(monkeypatch, *options_of(folder, "other", weight_decay=0.5))
    assert "seed-1 is of another run (weight_decay was None, is 0.5)" in error.value.code
    run_here(monkeypatch, *options_of(folder, "other"))  # goes on, whether or not it writes states of its own
    run = folder / "other" / "task/seed-1"
    assert results(run)["resumed_at_step"] == 4
    (run / "checkpoint-4").mkdir()
    run_here(monkeypatch, *options_of(folder, "other"))
    assert not [*run.glob("checkpoint-*")]


def break_losses(patch, steps, first_step=0):
    """The losses of these steps, from 1, are NaN; a step is one forward."""
    row_losses, training = finetuning.row_losses, itertools.count(first_step + 1)

    def broken(logits, labels, problem_type):
        losses = row_losses(logits, labels, problem_type)
        return losses * torch.nan if logits.requires_grad and next(training) in steps else losses

    patch.setattr(finetuning, "row_losses", broken)


def test_a_skipped_step_is_counted_and_an_interrupted_run_counts_the_same(folder, monkeypatch):
    parts = options_of(folder, "skipped", checkpointing_steps=4)
    with monkeypatch.context() as patch:
        break_losses(patch, (2, 3, 7, 8))
        run_here(monkeypatch, *options_of(folder, "skipped-whole"))
    whole = folder / "skipped-whole" / "task/seed-1"
    assert [line.get("skipped_steps") for line in lines(whole)] == [None, 1, 2, 2, 2, 2, 3] + [4] * 7
    assert ["loss" in line for line in lines(whole)] == [step not in (2, 3, 7, 8) for step in range(1, 15)]
    with monkeypatch.context() as patch:
        break_losses(patch, (2, 3, 7, 8))
        killed(monkeypatch, *parts, kill=lambda patch: kill_at_step(patch, 11))
    run = folder / "skipped" / "task/seed-1"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]  # none after step 8, which was skipped
    with monkeypatch.context() as patch:
        break_losses(patch, (7, 8), first_step=4)
        run_here(monkeypatch, *parts)
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def test_five_skipped_steps_in_a_row_end_the_run(folder, monkeypatch):
    break_losses(monkeypatch, range(6, 99))
    with pytest.raises(SystemExit) as error:
        run_here(monkeypatch, *options_of(folder, "broken", checkpointing_steps=4))
    state = folder / "broken" / "task/seed-1" / "checkpoint-4"
    assert error.value.code == (
        "error: loss or gradients were not finite at 5 step(s) in a row, up to step 10: lower --learning_rate; "
        f"the last good checkpoint is {state}"
    )


def terminate_at_step(patch, step):
    write = MetricsFile.write

    def terminating(self, **values):
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, **values)

    patch.setattr(MetricsFile, "write", terminating)


def test_sigterm_saves_a_state_and_the_same_command_goes_on(folder, monkeypatch, capsys):
    run_here(monkeypatch, *options_of(folder, "stopped-whole"))
    parts = options_of(folder, "stopped")  # without --checkpointing_steps
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        terminate_at_step(patch, 6)
        run_here(monkeypatch, *parts)
    run = folder / "stopped" / "task/seed-1"
    assert error.value.code == 143 and f"Stopped by SIGTERM: {run / 'checkpoint-6'}" in capsys.readouterr().out
    run_here(monkeypatch, *parts)
    assert results(run)["resumed_at_step"] == 6
    for file in ("model.safetensors", "metrics.jsonl", "predictions.csv"):
        assert (run / file).read_bytes() == (folder / "stopped-whole/task/seed-1" / file).read_bytes(), file


def test_sigterm_between_runs_ends_the_script_at_once(folder, monkeypatch, capfd):
    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    parts = options_of(folder, "while_it_encodes", checkpointing_steps=4)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(run_gue, "encode", terminate)
        run_here(monkeypatch, *parts)
    assert error.value.code == 143 and "Stopped by SIGTERM: the same command goes on" in capfd.readouterr().err
    assert not [*(folder / "while_it_encodes").glob("*/*/*")]
    run_here(monkeypatch, *parts)
    assert results(folder / "while_it_encodes/task/seed-1")["resumed_at_step"] is None


@pytest.mark.parametrize("moment", ["in the last step", "while it predicts"])
def test_sigterm_after_training_ends_the_script_with_the_run(folder, monkeypatch, capfd, moment):
    def terminate(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return predict(*args)

    predict, name = run_gue.predict, moment.replace(" ", "_")
    parts = [*options_of(folder, name), "--seeds", "1", "2"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        if moment == "in the last step":
            terminate_at_step(patch, 14)
        else:
            patch.setattr(run_gue, "predict", terminate)
        run_here(monkeypatch, *parts)
    assert error.value.code == 143 and "Stopped by SIGTERM: the same command goes on" in capfd.readouterr().err
    assert results(folder / name / "task/seed-1")["test"]["loss"] < 5
    assert not (folder / name / "task/seed-2").exists()
    run_here(monkeypatch, *parts)
    assert "1 finished, 1 to do" in capfd.readouterr().out and results(folder / name / "task/seed-2")
