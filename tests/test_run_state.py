"""A fine-tuning that was interrupted goes on from its last whole state and ends bit for bit as one that was not.

pytest tests/test_run_state.py
"""

import pytest
from gue_runs import SIZES, command, lines, results, run_here, save_base, write_task

from dnabert2 import run_state
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
