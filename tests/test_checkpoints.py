"""Checkpoints are whole or absent, and a run goes on from one only as the run it was.

pytest tests/test_checkpoints.py
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnabert2 import checkpoints
from dnabert2.files import publish, whole_folder
from dnabert2.loading import ROOT, load_tokenizer, new_model


MAIN, OTHER = (SimpleNamespace(is_main_process=is_main) for is_main in (True, False))


def make_checkpoint(output_dir, step, name=None):
    folder = output_dir / (name or f"checkpoint-{step}")
    folder.mkdir(parents=True)
    (folder / checkpoints.STATE_FILE).write_text(json.dumps({"step": step}))
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- whole folders -----------------------------------------------------------------------------------------------


def test_a_folder_appears_under_its_name_only_when_whole(tmp_path):
    folder = tmp_path / "deep" / "entry"
    with whole_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("all of it")
        assert not folder.exists() and temporary.parent == folder.parent
    assert (folder / "sub" / "file").read_text() == "all of it"
    assert list(folder.parent.iterdir()) == [folder]


def test_an_exception_leaves_nothing_and_keeps_an_older_folder(tmp_path):
    folder = tmp_path / "entry"
    for attempt in ("first", "second"):
        with pytest.raises(RuntimeError), whole_folder(folder) as temporary:
            (temporary / "file").write_text(attempt)
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []
    with whole_folder(folder) as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as temporary:
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


def test_a_whole_folder_that_has_appeared_meanwhile_stays(tmp_path):
    folder = tmp_path / "entry"
    for name in ("old", "new"):
        with whole_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


def test_publishing_replaces_an_older_folder(tmp_path):
    for name in ("old", "new"):
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside" / name).write_text(name)
        publish(tmp_path / "aside", tmp_path / "checkpoint-3")
    assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == ["new"]


def test_a_process_killed_on_the_way_leaves_no_folder_of_that_name(tmp_path):
    code = "import os, sys, pathlib; from dnabert2.files import whole_folder\n"
    code += (
        "with whole_folder(pathlib.Path(sys.argv[1])) as t: (t / 'half').write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "checkpoint-3"], cwd=ROOT).returncode == -9
    (left,) = tmp_path.iterdir()
    (left / checkpoints.STATE_FILE).write_text("{}")  # as if it had died when all was written and nothing named
    assert ".tmp" in left.name
    assert checkpoints.latest_checkpoint(tmp_path) is None


# --- optimiser and scheduler -------------------------------------------------------------------------------------


def accelerator_of_one_process():
    return SimpleNamespace(
        is_main_process=True,
        is_fsdp2=False,
        device=torch.device("cpu"),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2),
        unwrap_model=lambda model, keep_torch_compile: model,
        get_state_dict=lambda model: model.state_dict(),
        wait_for_everyone=lambda: None,
    )


def test_a_checkpoint_restores_optimizer_scheduler_and_scaler_without_pickle(tmp_path):
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    sizes = "num_hidden_layers=1,hidden_size=8,num_attention_heads=2,intermediate_size=8"

    def new_run():
        model = new_model(ROOT / "configs" / "tiny.json", tokenizer, sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return accelerator_of_one_process(), model, optimizer, scheduler

    accelerator, model, optimizer, scheduler = new_run()
    for _ in range(3):
        model(input_ids=torch.tensor([[1, 7, 8, 2]])).logits.square().mean().backward()
        accelerator.scaler.scale(torch.ones(()))
        optimizer.step()
        accelerator.scaler.update(16.0)
        scheduler.step()
    checkpoints.save_checkpoint(accelerator, tmp_path / "saved", model, tokenizer, optimizer, scheduler, {"step": 3})
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".py", ".safetensors"}
    assert checkpoints.read_state(tmp_path / "saved")["step"] == 3

    other_accelerator, other, other_optimizer, other_scheduler = new_run()
    checkpoints.load_checkpoint(other_accelerator, tmp_path / "saved", other, other_optimizer, other_scheduler)
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.5 / 4
    assert other_scheduler.last_epoch == 3 and other_accelerator.scaler.get_scale() == 16.0
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[mine].keys() == other_optimizer.state[its].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, other_optimizer.state[its][key]) for key, value in optimizer.state[mine].items())


# --- which checkpoint --------------------------------------------------------------------------------------------


def test_the_latest_checkpoint_is_the_whole_one_of_the_highest_step(tmp_path):
    assert checkpoints.latest_checkpoint(tmp_path) is checkpoints.latest_checkpoint(tmp_path / "absent") is None
    make_checkpoint(tmp_path, 9)
    newest = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, "checkpoint-11.tmp")
    make_checkpoint(tmp_path, 12, "checkpoint-12.tmp-77")
    make_checkpoint(tmp_path, 13, "checkpoint-last")
    (tmp_path / "checkpoint-14").mkdir()  # without a state
    (tmp_path / "checkpoint-15").write_text("a file")
    assert checkpoints.latest_checkpoint(tmp_path) == newest


# --- pruning -----------------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "limit, kept", [(None, (5, 9, 10, 200)), (9, (5, 9, 10, 200)), (4, (5, 9, 10, 200)), (2, (10, 200)), (1, (200,))]
)
def test_the_checkpoints_of_the_lowest_steps_are_removed_beyond_the_limit(tmp_path, limit, kept):
    for step in (10, 5, 200, 9):
        make_checkpoint(tmp_path, step)
    checkpoints.prune_checkpoints(tmp_path / "checkpoint-200", limit)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in kept)


def test_the_checkpoint_just_written_stays_when_a_run_went_back_to_an_earlier_one(tmp_path):
    for step in (1, 2, 3, 4):
        make_checkpoint(tmp_path, step)
    checkpoints.prune_checkpoints(tmp_path / "checkpoint-2", 2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_pruning_leaves_alone_what_is_no_whole_checkpoint_of_this_folder(tmp_path):
    others = (
        "checkpoint-1.tmp",
        "checkpoint-2.tmp-77",
        "checkpoint-last",
        "checkpoint--3",
        "my-checkpoint-4",
        "model",
    )
    for name in others:
        make_checkpoint(tmp_path / "run", 1, name)
    (tmp_path / "run" / "checkpoint-5").mkdir()  # without a state
    (tmp_path / "run" / "checkpoint-6").write_text("a file")
    (tmp_path / "run" / "checkpoint-7").symlink_to(make_checkpoint(tmp_path, 7, "moved-away-and-linked-to"))
    for step in (8, 9):
        make_checkpoint(tmp_path / "run", step)
    before = names(tmp_path / "run")
    checkpoints.prune_checkpoints(tmp_path / "run" / "checkpoint-9", 1)
    assert set(before) - set(names(tmp_path / "run")) == {"checkpoint-8"}
    assert names(tmp_path / "moved-away-and-linked-to") == [checkpoints.STATE_FILE]


def test_a_process_killed_while_it_prunes_leaves_nothing_that_looks_whole_and_the_next_removes_it(tmp_path):
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    code = "import os, pathlib, sys; from dnabert2 import checkpoints\n"
    code += "checkpoints.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    code += "checkpoints.prune_checkpoints(pathlib.Path(sys.argv[1]), 1)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "checkpoint-3"], cwd=ROOT).returncode == -9
    assert "checkpoint-1" not in names(tmp_path) and len(names(tmp_path)) == 3
    assert checkpoints.whole_checkpoints(tmp_path) == [tmp_path / "checkpoint-3"]
    for step in (1, 4):  # 1: of the run begun again
        make_checkpoint(tmp_path, step)
    checkpoints.prune_checkpoints(tmp_path / "checkpoint-4", 2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("moment", ["rename", "unlink", "rmtree"])
def test_a_folder_to_be_pruned_has_lost_its_name_before_anything_in_it_is_gone(tmp_path, monkeypatch, moment):
    for step in (1, 2):
        (make_checkpoint(tmp_path, step) / "model.safetensors").write_text("weights")

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil if moment == "rmtree" else Path, moment, die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.prune_checkpoints(tmp_path / "checkpoint-2", 1)
    for state_file in tmp_path.glob(f"*/{checkpoints.STATE_FILE}"):
        assert (state_file.parent / "model.safetensors").exists()
    whole = ["checkpoint-1", "checkpoint-2"] if moment == "rename" else ["checkpoint-2"]
    assert [path.name for path in checkpoints.whole_checkpoints(tmp_path)] == whole
    monkeypatch.undo()
    checkpoints.prune_checkpoints(tmp_path / "checkpoint-2", 1)
    assert names(tmp_path) == ["checkpoint-2"]


# --- metrics -----------------------------------------------------------------------------------------------------


def test_metrics_are_on_disk_line_by_line_and_the_last_values_at_hand(tmp_path):
    path = tmp_path / checkpoints.METRICS_FILE
    metrics = checkpoints.MetricsFile(path, 0, MAIN)
    metrics.write(step=0, validation_loss=9.0)
    metrics.write(step=1, loss=8.0)
    assert lines(path) == [{"step": 0, "validation_loss": 9.0}, {"step": 1, "loss": 8.0}]
    assert metrics.last == {"step": 1, "validation_loss": 9.0, "loss": 8.0}


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / checkpoints.METRICS_FILE
    whole = [{"step": step, "loss": 10.0 - step} for step in range(6)]
    path.write_text("\n".join(map(json.dumps, whole)) + '\n{"step": 6, "lo')
    metrics = checkpoints.MetricsFile(path, 3, MAIN)
    assert lines(path) == whole[:4] and metrics.last == {"step": 3, "loss": 7.0}
    metrics.write(step=4, loss=6.5)
    assert lines(path) == [*whole[:4], {"step": 4, "loss": 6.5}]
    assert list(tmp_path.iterdir()) == [path]
    path.write_text(path.read_text()[:-5])  # torn in the last line that is kept
    checkpoints.MetricsFile(path, 4, MAIN)
    assert lines(path) == whole[:4]


def test_a_run_from_step_0_begins_its_metrics_anew(tmp_path):
    path = tmp_path / checkpoints.METRICS_FILE
    path.write_text('{"step": 0, "validation_loss": 9.0}\n{"step": 1, "loss": 8.0}\n')
    checkpoints.MetricsFile(path, 0, MAIN).write(step=0, validation_loss=9.0)
    assert lines(path) == [{"step": 0, "validation_loss": 9.0}]


def test_other_processes_write_no_metrics(tmp_path):
    metrics = checkpoints.MetricsFile(tmp_path / checkpoints.METRICS_FILE, 0, OTHER)
    metrics.write(step=1, loss=2.0)
    assert list(tmp_path.iterdir()) == [] and metrics.last == {"step": 1, "loss": 2.0}


# --- the tokenizer -----------------------------------------------------------------------------------------------


def test_a_tokenizer_is_saved_for_every_version_and_gives_the_same_ids(tmp_path):
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    checkpoints.save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = load_tokenizer(tmp_path)
    for text in ("ACGTNacgtunRY x", "", "ACGT[MASK]TTTGACCA" * 20):
        assert again(text, "ACCA").data == tokenizer(text, "ACCA").data
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()  # the corpus cache goes by this
    assert again.decode(again("acgttgca")["input_ids"], skip_special_tokens=True) == "ACGTTGCA"
    assert again.special_tokens_map == tokenizer.special_tokens_map
