"""The arithmetic of a training step, against a hand count and torch's own counter; pauses do not count.

pytest tests/test_throughput.py
"""

import time
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from models import build, random_ids
from torch.utils.flop_counter import FlopCounterMode

from dnabert2 import throughput


def test_the_117m_takes_697_mflop_a_token():
    config = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, vocab_size=4096)
    assert throughput.training_flops_per_token(config, 128, 0.15) == pytest.approx(697.0e6, rel=1e-3)


@pytest.mark.parametrize("length", [16, 48])
def test_flops_are_three_times_those_torch_counts_in_a_forward(length):
    model = build(attention="eager")  # of sdpa on a CPU torch counts nothing
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=random_ids(3, length), prediction_positions=torch.arange(3 * length // 4))
    expected = throughput.training_flops_per_token(model.config, length, 0.25) * 3 * length
    assert expected == pytest.approx(3 * counter.get_total_flops(), rel=1e-9)


def test_a_training_step_costs_what_torch_counts_in_it():
    model = build(attention="eager").train()
    predictions = {"prediction_positions": torch.arange(16), "labels": random_ids(16)}
    with FlopCounterMode(display=False) as counter:
        model(input_ids=random_ids(2, 32), **predictions).loss.backward()
    expected = throughput.training_flops_per_token(model.config, 32, 0.25) * 2 * 32
    assert expected == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.fixture
def meter(monkeypatch):
    """A meter of 100 tokens a step on a CPU, and its clock."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    meter = throughput.Meter(accelerator, None, Namespace(total_train_batch_size=10, max_seq_length=10))
    meter.start()
    return meter, clock


def test_the_meter_counts_tokens_since_the_last_reading(meter):
    meter, clock = meter
    meter.steps += 3
    clock.now += 2
    found = meter.read()
    assert found["tokens_per_second"] == 150 and found["memory_gib"] > 0.01
    meter.steps += 1
    clock.now += 4
    assert meter.read()["tokens_per_second"] == 25


def test_time_in_a_pause_does_not_count(meter):
    meter, clock = meter
    for _ in range(2):
        clock.now += 1
        meter.steps += 1
        with meter.paused():
            clock.now += 500
    assert meter.read()["tokens_per_second"] == 100


def test_mfu_is_the_share_of_the_matrix_rate_a_device(meter, monkeypatch):
    meter, clock = meter
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    meter.on_gpu, meter.num_processes, meter.flops_per_token, meter.matrix_rate = True, 2, 5.0, 1000.0
    meter.steps, clock.now = 4, clock.now + 2  # 200 tokens/s on two devices: 500 FLOP/s each
    assert meter.read() == {"tokens_per_second": 200, "mfu": 0.5, "memory_gib": 3}


def test_the_outlook_is_told_after_twenty_steps_at_the_rate_of_the_last_ten(meter):
    meter, clock = meter
    loss = torch.zeros(())
    told = {}
    for step in range(1, 31):
        clock.now += 60 if step <= 10 else 2  # the first ones compile
        if step == 15:
            with meter.paused():
                clock.now += 1000
        if line := meter.outlook(step, 3000 - step, loss):
            told[step] = line
    assert list(told) == [20]
    assert "50 tokens/s" in told[20] and "1:39:20 to go" in told[20]
