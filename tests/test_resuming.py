"""Which run an output folder holds, and what it goes on from. Whole runs: test_run_mlm.py, test_run_mlm_refusals.py.

pytest tests/test_resuming.py
"""

import json
from argparse import Namespace

import pytest

from dnabert2 import resuming
from dnabert2.checkpoints import METRICS_FILE, RESULTS_FILE, STATE_FILE
from dnabert2.errors import UsageError


GIVEN = {"seed": 1, "learning_rate": 0.1}


def make_checkpoint(output_dir, step, arguments=GIVEN):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_text(json.dumps({"step": step, "arguments": arguments}))
    return folder


def test_a_run_begins_where_there_is_none_and_goes_on_from_its_last_checkpoint(tmp_path):
    run = tmp_path / "deep" / "run"
    assert resuming.find_run(run, "latest", GIVEN) == (None, False) and run.is_dir()
    resuming.begin(run, GIVEN)
    (run / METRICS_FILE).touch()
    assert resuming.find_run(run, "latest", GIVEN) == (None, False)  # killed before its first checkpoint
    first, second = (make_checkpoint(run, step) for step in (2, 10))
    assert resuming.find_run(run, "latest", GIVEN) == (second, False)
    assert resuming.find_run(run, str(first), GIVEN) == (first, False)
    (run / RESULTS_FILE).touch()
    assert resuming.find_run(run, "latest", GIVEN) == (second, True)
    assert resuming.find_run(run, str(first), GIVEN) == (first, False)  # asked for outright, it is done again
    resuming.begin(run, GIVEN)
    assert resuming.find_run(run, "latest", GIVEN) == (second, False)
    (run / RESULTS_FILE).touch()
    (run / resuming.ARGUMENTS_FILE).unlink()  # of a version that had no such file
    assert resuming.find_run(run, "latest", GIVEN) == (second, True)


@pytest.mark.parametrize("resume", ["latest", "elsewhere"])
def test_another_run_is_refused_with_the_difference(tmp_path, resume):
    run, elsewhere = tmp_path / "run", make_checkpoint(tmp_path / "other", 1)
    resume = str(elsewhere) if resume == "elsewhere" else resume
    run.mkdir()
    for arguments in (GIVEN | {"seed": 2}, {"learning_rate": 0.1}):
        resuming.begin(run, arguments)
        with pytest.raises(UsageError, match=rf"run is of another run \(--seed was {arguments.get('seed')}, is 1\)"):
            resuming.find_run(run, resume, GIVEN)
    resuming.begin(run, GIVEN)
    with pytest.raises(UsageError, match=r"checkpoint-1 is of another run"):
        resuming.find_run(run, str(make_checkpoint(tmp_path / "third", 1, {"seed": 3})), GIVEN)


@pytest.mark.parametrize("name", [METRICS_FILE, RESULTS_FILE, "config.json"])
def test_a_folder_with_something_that_would_be_overwritten_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"holds another run or a model already \({name}\)"):
        resuming.find_run(tmp_path, "latest", GIVEN)


def test_what_is_no_checkpoint_and_no_folder_is_refused(tmp_path):
    for wrong in (tmp_path, tmp_path / "absent", make_checkpoint(tmp_path, 3) / STATE_FILE):
        with pytest.raises(UsageError, match=r"no checkpoint, run_state\.json is missing"):
            resuming.find_run(tmp_path, str(wrong), GIVEN)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--output_dir .* is no folder and cannot become one"):
        resuming.find_run(tmp_path / "file", "latest", GIVEN)


def test_damaged_records_are_refused_by_name(tmp_path):
    folder = make_checkpoint(tmp_path / "run", 3)
    (folder / STATE_FILE).write_text('{"step": ')
    with pytest.raises(UsageError, match=r"checkpoint-3/run_state\.json is damaged"):
        resuming.find_run(tmp_path / "run", "latest", GIVEN)
    for text in ("{", "[]", "\0"):
        (tmp_path / "run" / resuming.ARGUMENTS_FILE).write_text(text)
        with pytest.raises(UsageError, match=r"arguments\.json is damaged .*: name another --output_dir"):
            resuming.find_run(tmp_path / "run", "latest", GIVEN)


def test_other_arguments_are_named_with_both_values(tmp_path):
    saved = {"learning_rate": 0.1, "seed": 1, "train_file": ["a.fa"], "gone": 3}
    resuming.refuse_other_arguments(tmp_path, saved, dict(saved))
    given = {"learning_rate": 0.2, "seed": 1, "train_file": ["a.fa", "b.fa"], "new": True}
    with pytest.raises(UsageError) as error:
        resuming.refuse_other_arguments(tmp_path, saved, given)
    message = str(error.value)
    assert message.startswith(str(tmp_path)) and "\n" not in message
    for difference in ("--learning_rate was 0.1, is 0.2", "--train_file was ['a.fa'], is ['a.fa', 'b.fa']"):
        assert difference in message
    assert "--gone was 3, is None" in message and "--new was None, is True" in message and "seed" not in message


def test_arguments_that_change_no_result_are_free_on_resume(tmp_path):
    first = Namespace(seed=1, cache_dir="a", logging_steps=1, output_dir=tmp_path, dataloader_num_workers=0)
    second = Namespace(seed=1, cache_dir="b", logging_steps=9, output_dir="elsewhere", dataloader_num_workers=4)
    assert resuming.arguments_of_run(first) == resuming.arguments_of_run(second) == {"seed": 1}
    limits = Namespace(seed=1, save_total_limit=2, with_tracking=True, report_to="tensorboard")
    assert resuming.arguments_of_run(limits) == {"seed": 1}
    odd = resuming.arguments_of_run(Namespace(path=tmp_path, files=("a", "b"), rate=1e-5))
    assert odd == json.loads(json.dumps(odd)) == {"path": str(tmp_path), "files": ["a", "b"], "rate": 1e-5}
