"""Tokens, the pusher and the arguments of pushing, in the test's own process: without a Hub.

pytest tests/test_hub_pusher.py
"""

import errno
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import gue_runs
import mlm_runs
import pytest

from dnabert2 import errors, hub, publish, resuming
from dnabert2.errors import UsageError


TOKEN = "hf_user"


class TestTheToken:
    def test_is_taken_from_arguments_and_command_line(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["run_mlm.py", "--hub_token", "hf_secret", "--hub_token=hf_secret"])
        args = Namespace(hub_token="hf_secret")
        assert hub.take_token(args) == "hf_secret"
        assert args.hub_token is None and sys.argv == ["run_mlm.py", "--hub_token", "...", "--hub_token=..."]
        assert "hub_token" in resuming.FREE_ON_RESUME


def process(push: Callable[[list[str], dict], tuple[int, str]]) -> type:
    """In place of Popen: its process is a call of `push`, which gives exit status and what it has told."""

    class Process:
        returncode = None

        def __init__(self, command: list[str], env: dict[str, str], **_):
            self.arguments = command, env

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def communicate(self) -> tuple[None, str]:
            self.returncode, errors = push(*self.arguments)
            return None, errors

        def poll(self) -> int | None:
            return self.returncode

    return Process


class TestAPusher:
    """With the process that pushes, and the repository, put aside."""

    @pytest.fixture
    def pusher(self, monkeypatch, tmp_path) -> Iterator[hub.Pusher]:
        monkeypatch.setattr(publish, "open_repository", lambda *_, **__: "user/name")
        left_over = tmp_path / "push.tmp-1"
        left_over.mkdir()
        args = Namespace(push_to_hub=True, hub_model_id=None, hub_token=TOKEN, hub_private_repo=False)
        args.hub_strategy, args.output_dir, args.trust_remote_code = "checkpoint", tmp_path, True
        pusher = hub.Pusher(args, is_main_process=True)
        assert not left_over.exists()
        yield pusher
        errors.at_end.close()

    def test_pushes_the_newest_of_those_that_wait(self, monkeypatch, pusher, tmp_path):
        is_running, may_end, pushed = threading.Event(), threading.Event(), []

        def push(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
            is_running.set()
            assert may_end.wait(30)
            folder = Path(command[3])
            pushed.append((folder.name, (folder / "model").read_text(), environment["HF_TOKEN"]))
            assert TOKEN not in command and command[4:] == ["user/name", "--trust_remote_code"]
            return 0, ""

        monkeypatch.setattr(subprocess, "Popen", process(push))
        monkeypatch.setattr(publish, "publish", lambda folder, *_, **__: pushed.append((folder.name, "", "")))
        for step in (1, 2, 3):
            with pusher.snapshot(step) as folder:
                (folder / "model").write_text(f"of step {step}")
            assert is_running.wait(30)
        assert {path.name for path in tmp_path.iterdir()} == {"push.tmp-1", "push.tmp-3"}
        may_end.set()
        pusher.pushes[-1][0].result()
        pusher.finish(tmp_path)
        assert pushed == [
            ("push.tmp-1", "of step 1", TOKEN),
            ("push.tmp-3", "of step 3", TOKEN),
            (tmp_path.name, "", ""),
        ]
        assert not [*tmp_path.iterdir()]

    def test_tells_of_a_push_that_failed_and_lets_training_go_on(self, monkeypatch, pusher, capfd):
        failed = 1, "a line\nerror: no pushing to user/name: it fails\n"
        monkeypatch.setattr(subprocess, "Popen", process(lambda *_: failed))
        with pusher.snapshot(7):
            pass
        pusher.pushes[-1][0].result()
        told = "The checkpoint of step 7 was not pushed: error: no pushing to user/name: it fails"
        assert told in capfd.readouterr().err

    def test_tells_of_a_push_that_could_not_begin(self, monkeypatch, pusher, tmp_path, capfd):
        def fail(*_, **__):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(subprocess, "Popen", fail)
        with pusher.snapshot(3):
            pass
        pusher.pushes[-1][0].result()
        assert "step 3 was not pushed" in (told := capfd.readouterr().err) and "Cannot allocate memory" in told
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("a fault of ours")])
    def test_tells_where_the_model_is_whatever_fails(self, monkeypatch, pusher, tmp_path, capfd, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(publish, "publish", fail)
        with pytest.raises((UsageError, KeyError)) as raised:
            pusher.finish(tmp_path)
        told = capfd.readouterr().err + str(raised.value)
        assert f"python -m dnabert2.publish {tmp_path} user/name --trust_remote_code" in told

    def test_leaves_in_time_where_a_run_is_broken_off(self, monkeypatch, pusher, tmp_path, capfd):
        silent = [sys.executable, "-c", "import time; time.sleep(60)"]
        monkeypatch.setattr(pusher, "_command", lambda _: silent)
        monkeypatch.setattr(hub, "LAST_WAIT", 0.5)

        def main():
            for step in (1, 2):
                with pusher.snapshot(step):
                    pass
                while not (pusher.process or step == 2):
                    time.sleep(0.01)
            raise KeyboardInterrupt

        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            errors.run_script(main)
        assert time.monotonic() - start < 20
        told = capfd.readouterr().err
        assert "Waiting for the push of step 1" in told and "step 1 was not pushed" in told and "step 2" not in told
        assert not [*tmp_path.iterdir()]

    def test_links_what_may_be_pruned(self, monkeypatch, pusher, tmp_path):
        monkeypatch.setattr(pusher, "_push_snapshot", lambda snapshot: None)
        checkpoint = gue_runs.save_base(tmp_path / "checkpoint-5")
        for file in (checkpoint / "run_state.json", checkpoint / "optimizer.safetensors", tmp_path / "metrics.jsonl"):
            file.write_text("{}")
        pusher.push_checkpoint(checkpoint)
        snapshot = tmp_path / "push.tmp-5"
        names = {path.name for path in snapshot.iterdir()}
        assert names == {path.name for path in checkpoint.iterdir()} - {"optimizer.safetensors"} | {"metrics.jsonl"}
        assert (snapshot / "model.safetensors").samefile(checkpoint / "model.safetensors")

    def test_of_another_process_does_nothing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(publish, "open_repository", lambda *_, **__: pytest.fail("asked the Hub"))
        args = Namespace(push_to_hub=True, hub_model_id=None, hub_token=TOKEN, hub_private_repo=False)
        args.hub_strategy, args.output_dir, args.trust_remote_code = "checkpoint", tmp_path, False
        pusher = hub.Pusher(args, is_main_process=False)
        pusher.push_checkpoint(tmp_path / "checkpoint-1")
        pusher.finish(tmp_path)


class TestArguments:
    def test_that_are_mistyped_do_not_tell_the_token(self, monkeypatch, capsys, tmp_path):
        token = "hf_" + "aBcD1234" * 4
        for run in (mlm_runs.run_here, gue_runs.run_here):
            for flag in (["--hub_tokens", token], [f"--hub_tokens={token}"]):
                with pytest.raises(SystemExit):
                    run(monkeypatch, "--output_dir", str(tmp_path), *flag)
        told = capsys.readouterr().err
        assert "unrecognized arguments: --hub_tokens hf_...\n" in told and token[:8] not in told

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"hub_model_id": "user/x"}, "--hub_model_id is of --push_to_hub"),
            ({"hub_token": TOKEN}, "--hub_token is of --push_to_hub"),
            ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "give --checkpointing_steps"),
        ],
    )
    def test_of_pretraining_that_make_no_sense_are_refused(self, monkeypatch, tmp_path, options, message):
        with pytest.raises(SystemExit, match=message):
            mlm_runs.run_here(monkeypatch, *mlm_runs.arguments(tmp_path, tmp_path / "out", **options))

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"seeds": [1, 2]}, "pushes one model, and these are 2"),
            ({"use_lora": True}, "is an adapter|would push an adapter of the folder"),
        ],
    )
    def test_of_fine_tuning_that_cannot_be_pushed_are_refused(self, monkeypatch, tmp_path, options, message):
        task = gue_runs.write_task(tmp_path / "task")
        base = gue_runs.save_base(tmp_path / "base")
        options |= {"data_dir": task, "model_name_or_path": base, "output_dir": tmp_path / "out", "push_to_hub": True}
        with pytest.raises(SystemExit, match=message):
            gue_runs.run_here(monkeypatch, *gue_runs.command(**options))
