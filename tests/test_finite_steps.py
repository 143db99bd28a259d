"""A step whose loss or gradients are not finite changes nothing, is counted, and five in a row end the run.

pytest tests/test_finite_steps.py
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from dnabert2.checkpoints import STATE_FILE
from dnabert2.errors import UsageError
from dnabert2.finite_steps import FiniteSteps


HOST = SimpleNamespace(device=torch.device("cpu"), scaler=None)
GOOD, NAN, INF = (torch.tensor(value) for value in (1.0, math.nan, math.inf))


def steps_of(is_fused=False, accelerator=HOST, skipped=0):
    parameter = torch.nn.Parameter(torch.ones(3))
    return parameter, FiniteSteps(accelerator, torch.optim.AdamW([parameter], lr=0.1, fused=is_fused), skipped)


def make(parameter, steps, loss, grad_norm):
    parameter.grad = torch.full_like(parameter, grad_norm.item())
    steps.step(loss, grad_norm)


@pytest.mark.parametrize("is_fused", [False, True])  # as on a GPU: decided on the device
def test_a_skipped_step_changes_neither_weights_nor_the_optimizer(tmp_path, is_fused):
    whole, without = (steps_of(is_fused) for _ in range(2))
    for loss, grad_norm in ((GOOD, GOOD), (NAN, NAN), (GOOD, INF), (INF, GOOD), (GOOD, GOOD)):
        make(*whole, loss, grad_norm)
        if loss is grad_norm is GOOD:
            make(*without, loss, grad_norm)
    assert torch.equal(whole[0], without[0])
    states = [steps.inner.state[parameter] for parameter, steps in (whole, without)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()) and states[0]["step"] == 2
    assert whole[1].look(5, True, tmp_path) == (3, 0) and without[1].look(2, True, tmp_path) == (0, 0)


def test_counts_go_on_from_those_of_the_run_before(tmp_path):
    parameter, steps = steps_of(skipped=7)
    make(parameter, steps, NAN, NAN)
    assert steps.look(8, False, tmp_path) == (8, 1)


def test_weights_are_known_to_be_good_by_a_finite_loss_whatever_its_gradients(tmp_path):
    parameter, steps = steps_of()
    make(parameter, steps, GOOD, NAN)
    assert steps.look(1, True, tmp_path) == (1, 1)
    make(parameter, steps, INF, GOOD)
    with pytest.raises(UsageError, match="not finite at 2 step"):
        steps.look(2, True, tmp_path)


@pytest.mark.parametrize("looks", [[9], [2, 4, 6, 9]])
def test_five_in_a_row_end_the_run_with_its_last_checkpoint_however_often_one_looks(tmp_path, looks):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / STATE_FILE).write_text(json.dumps({"step": 2}))
    parameter, steps = steps_of()
    with pytest.raises(UsageError) as error:
        for step in range(1, 10):
            make(parameter, steps, NAN if 3 <= step < 8 else GOOD, GOOD)
            if step in looks:
                steps.look(step, False, tmp_path)
    assert "at 5 step(s) in a row" in str(error.value)
    assert str(error.value).endswith(f"lower --learning_rate; the last good checkpoint is {tmp_path / 'checkpoint-2'}")


def test_four_in_a_row_are_borne_again_and_again(tmp_path):
    parameter, steps = steps_of()
    for step in range(1, 26):
        make(parameter, steps, GOOD if step % 5 == 0 else NAN, GOOD)
        steps.look(step, False, tmp_path)
    assert steps.look(25, True, tmp_path) == (20, 0)


def test_infinite_gradients_of_fp16_are_its_scalers(tmp_path):
    parameter, steps = steps_of(accelerator=SimpleNamespace(device=HOST.device, scaler=object()))
    for _ in range(9):
        make(parameter, steps, GOOD, INF)
    assert steps.look(9, True, tmp_path) == (0, 0)
    make(parameter, steps, NAN, NAN)
    assert steps.look(10, False, tmp_path) == (1, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_for_it_before_one_looks(tmp_path):
    device = torch.device("cuda")
    parameter = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    steps = FiniteSteps(SimpleNamespace(device=device, scaler=None), optimizer)
    good, bad = (torch.full((), value, device=device) for value in (1.0, math.nan))
    make(parameter, steps, good, good)  # the optimiser's state is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in (good, bad, good):
            parameter.grad = torch.zeros(3, device=device) + loss
            steps.step(loss, loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, on_host = steps_of(is_fused=True)
    for _ in range(3):
        make(expected, on_host, GOOD, GOOD)
    assert torch.allclose(parameter.cpu(), expected, atol=1e-6)
    assert steps.look(4, True, tmp_path) == (1, 0)
