"""SIGTERM is noted, agreed on by several processes, and ignored by loader workers. In runs: test_run_mlm_interruptions

pytest tests/test_stopping.py
"""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from dnabert2.errors import run_script
from dnabert2.stopping import AGREE_STEPS, Sigterm, ignore_sigterm


@pytest.fixture(autouse=True)
def handler_stays():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def accelerator(num_processes, told_by_others=0.0):
    reduce = lambda tensor, reduction: tensor + told_by_others  # noqa: E731
    return SimpleNamespace(num_processes=num_processes, device=torch.device("cpu"), reduce=reduce)


def test_one_process_stops_after_the_step_in_which_the_signal_came():
    sigterm = Sigterm()
    assert not sigterm.is_stopping(accelerator(1), 7)
    os.kill(os.getpid(), signal.SIGTERM)
    assert sigterm.is_stopping(accelerator(1), 7)


def test_several_processes_stop_at_one_step_whichever_of_them_was_signalled():
    signalled, other = Sigterm(), Sigterm()
    signalled.has_come = True
    steps = range(1, 2 * AGREE_STEPS + 1)
    assert [step for step in steps if signalled.is_stopping(accelerator(2), step)] == [AGREE_STEPS, 2 * AGREE_STEPS]
    told = [step for step in steps if other.is_stopping(accelerator(2, told_by_others=1.0), step)]
    assert told == [AGREE_STEPS, 2 * AGREE_STEPS]
    assert not any(other.is_stopping(accelerator(2), step) for step in steps)


def test_where_no_one_asks_the_signal_ends_the_script_at_once_and_within_training_at_its_end():
    sigterm = Sigterm(is_noted=False)
    with pytest.raises(SystemExit) as error:
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.code == 143 and sigterm.has_come
    sigterm, steps = Sigterm(is_noted=False), []
    with pytest.raises(SystemExit), sigterm.noted():
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append(sigterm.is_stopping(accelerator(1), 1))
    assert steps == [True]


def test_a_script_leaves_the_signal_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    run_script(Sigterm)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loader_worker_outlives_the_signal():
    items = iter(DataLoader(range(100), batch_size=None, num_workers=1, worker_init_fn=ignore_sigterm))
    assert next(items) == 0  # it is at work
    os.kill(items._workers[0].pid, signal.SIGTERM)
    assert list(items) == list(range(1, 100))
