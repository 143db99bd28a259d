"""Recorded training steps: on a CPU with a stand-in for the graph, on a GPU with CUDA's.

pytest tests/test_cuda_graphs.py
"""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend
from gue_runs import command, lines, predictions, results, run_here, save_base, write_task
from models import TINY, build, make_config
from transformers import AutoModelForSequenceClassification

from dnabert2 import cuda_graphs
from dnabert2.classifiers import add_adapter
from dnabert2.encoding import EncodedSplit, EncodedTask
from dnabert2.errors import UsageError
from dnabert2.finetuning import finetune
from dnabert2.gue import Recipe
from dnabert2.gue_arguments import LORA_TARGETS
from dnabert2.labelled import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dnabert2.loading import fastest_attention
from dnabert2.padding import Collator


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class StandIn:
    """Behaves as a graph does: a replay computes anew from its inputs, into the memory of the first call."""

    def __init__(self, function, inputs, parameters):
        self.parameters = parameters
        self.call = lambda: function(**inputs)
        self.result, self.gradients = self.run()
        self.replays = 0

    def run(self):
        for parameter in self.parameters:
            parameter.grad = None
        return self.call(), [parameter.grad for parameter in self.parameters]

    def replay(self):
        self.replays += 1
        result, gradients = self.run()
        self.result.copy_(result)
        for kept, gradient in zip(self.gradients, gradients, strict=True):
            if kept is not None:
                kept.copy_(gradient)


@pytest.fixture
def stand_ins(monkeypatch):
    """Has steps recorded on a CPU; the list gets every recording."""
    made = []

    def record(function, inputs, parameters, first):
        graph = StandIn(function, inputs, parameters)
        graph.shares_memory_of = first
        made.append(cuda_graphs.Recording(graph, inputs, graph.result, graph.gradients))
        return made[-1]

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "can_record", lambda *_: True)
    return made


def test_batches_have_few_lengths_and_little_padding():
    assert [cuda_graphs.length_multiple(longest) for longest in (8, 24, 128, 136, 256, 8192)] == [
        16,
        16,
        16,
        32,
        32,
        1024,
    ]
    assert all(-(-longest // cuda_graphs.length_multiple(longest)) <= 8 for longest in range(1, 3000))


@pytest.mark.parametrize(
    ("mean", "deviation", "multiple"),
    [
        (106, 4, 112),  # close lengths: a 32nd of the mean total, 3392
        (250, 90, 512),  # eight of these between four standard deviations below and above
        (5, 0, 16),
    ],
)
def test_packed_batches_have_few_totals_and_little_padding(mean, deviation, multiple):
    lengths = np.array([mean - deviation, mean + deviation] * 500)
    assert cuda_graphs.token_multiple(lengths, 32) == multiple
    totals = np.random.default_rng(0).choice(lengths, (20_000, 32)).sum(axis=1)
    assert len({*-(-totals // multiple)}) <= 1 + cuda_graphs.MOST_SHAPES


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"device": "cpu"}, False),
        ({"mixed_precision": "no"}, True),
        ({"mixed_precision": "fp16"}, False),
        ({"backend": DynamoBackend.INDUCTOR}, False),
        ({"model_type": "bert"}, False),
        ({"attention": "eager"}, True),
        ({"attention": "flash_attention_2"}, True),
        ({"attention": "flex_attention"}, False),
        ({"longest": 520}, False),
    ],
)
def test_steps_are_recorded_where_they_can_be(changed, expected):
    given = {"device": "cuda", "mixed_precision": "bf16", "backend": DynamoBackend.NO, "model_type": "dnabert2"}
    given |= changed
    accelerator = SimpleNamespace(
        device=torch.device(given["device"]),
        mixed_precision=given["mixed_precision"],
        state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=given["backend"])),
    )
    model = SimpleNamespace(config=SimpleNamespace(model_type=given["model_type"]))
    assert cuda_graphs.can_record(accelerator, model, given.get("longest", 512), given.get("attention")) == expected


def test_a_recorded_call_gives_the_result_and_the_gradients_of_a_plain_one(stand_ins):
    weight, unused = torch.nn.Parameter(torch.tensor([2.0, 3.0])), torch.nn.Parameter(torch.zeros(1))

    def function(x):
        loss = (weight.sum() * x * torch.rand(())).sum()
        loss.backward()
        return loss.detach()

    step = cuda_graphs.RecordedStep(function, [weight, unused])
    for seed, x in ((1, [1.0]), (2, [1.0, 4.0]), (3, [2.0]), (1, [1.0])):
        x = torch.tensor(x)
        torch.manual_seed(seed)
        draw = torch.rand(()).item()
        torch.rand(7)  # what was drawn before does not count
        assert step({"x": x}, seed) == pytest.approx(5 * x.sum().item() * draw)
        assert weight.grad.tolist() == pytest.approx([x.sum().item() * draw] * 2) and unused.grad is None
        weight.grad = None  # as an optimiser leaves it
    assert [recording.graph.replays for recording in stand_ins] == [3, 1]
    assert [recording.graph.shares_memory_of for recording in stand_ins] == [None, stand_ins[0]]


def failing(error, at_its_end=None):
    """In place of `record`: fails, and in the second case its end does, too."""

    def record(*_):
        try:
            raise error
        finally:
            if at_its_end:
                raise at_its_end

    return record


@pytest.mark.parametrize("errors", [[NO_MEMORY], [NO_MEMORY, RuntimeError("CUDA error: failed during capture")]])
def test_memory_that_is_too_small_for_a_recording_is_told_with_the_flag_that_does_without(monkeypatch, errors):
    monkeypatch.setattr(cuda_graphs, "record", failing(*errors))
    with pytest.raises(UsageError, match=r"--no_cuda_graphs.* --per_device_train_batch_size"):
        cuda_graphs.RecordedStep(torch.sum, [])({"x": torch.ones(1)}, 1)


def test_another_error_of_a_recording_is_raised_as_it_is(monkeypatch):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(cuda_graphs, "record", failing(error))
    with pytest.raises(RuntimeError) as raised:
        cuda_graphs.RecordedStep(torch.sum, [])({"x": torch.ones(1)}, 1)
    assert raised.value is error


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    write_task(folder / "task", rows=(61, 23, 27))
    return folder / "task"


@pytest.fixture(params=["padded", "packed"])
def layout(request, monkeypatch):
    """How recorded batches are made; packed for any attention, so that nothing but rounding may differ."""
    monkeypatch.setattr(cuda_graphs, "packs", lambda model: request.param == "packed")
    return request.param


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("padded", {"reverse_complement": True}),
        ("padded", {"use_lora": True}),
        ("packed", {"reverse_complement": True}),
    ],
    indirect=["layout"],
)
def test_a_run_of_recorded_steps_ends_as_a_plain_one(task, tmp_path, monkeypatch, stand_ins, layout, options):
    monkeypatch.setattr(cuda_graphs, "length_multiple", lambda _: 1)
    options = {
        "model_name_or_path": save_base(tmp_path / "base"),
        "data_dir": task,
        "per_device_eval_batch_size": 32,
    } | options
    run_here(monkeypatch, *command(output_dir=tmp_path / "graphs", **options))
    assert len(stand_ins) > 1 and sum(recording.graph.replays for recording in stand_ins) == 20
    run_here(monkeypatch, *command(output_dir=tmp_path / "plain", no_cuda_graphs=True, **options))
    graphs, plain = (tmp_path / name / "task/seed-1" for name in ("graphs", "plain"))
    assert results(graphs)["cuda_graphs"] and not results(plain)["cuda_graphs"]
    assert all(("cu_seqlens" in recording.inputs) == (layout == "packed") for recording in stand_ins)
    for line, its_line in zip(lines(graphs), lines(plain), strict=True):
        assert line == pytest.approx(its_line, abs=1e-4)
    run_here(monkeypatch, *command(output_dir=tmp_path / "graphs", **options | {"no_cuda_graphs": True}))
    assert results(graphs)["cuda_graphs"]  # it is finished, whatever launched its kernels


def test_accumulated_batches_are_not_recorded(task, tmp_path, monkeypatch, stand_ins):
    options = {
        "data_dir": task,
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 8,
        "max_train_steps": 2,
    }
    run_here(monkeypatch, *command(model_name_or_path=save_base(tmp_path / "base"), **options))
    assert not stand_ins and not results(tmp_path / "out/task/seed-1")["cuda_graphs"]
    assert len(predictions(tmp_path / "out/task/seed-1")) == 27


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=GPU)])
def graphs(request, monkeypatch):
    """A list that gets every recording, of stand-ins on the CPU or of graphs on the GPU; `finetuned` runs there."""
    monkeypatch.setattr(finetuned, "on_cpu", request.param == "stand-in", raising=False)
    if request.param == "stand-in":
        return request.getfixturevalue("stand_ins")
    made, record = [], cuda_graphs.record
    monkeypatch.setattr(cuda_graphs, "record", lambda *args: made.append(record(*args)) or made[-1])
    return made


def encoded_task(problem_type, lengths=(20, 118), rows=160):
    """Random rows; most batches of 32 fall into two lengths of batches."""
    rng = np.random.default_rng(0)
    labels = {
        SINGLE_LABEL: rng.integers(0, 2, rows),
        MULTI_LABEL: rng.integers(0, 2, (rows, 2)).astype(np.float32),
        REGRESSION: rng.normal(size=rows).astype(np.float32),
    }[problem_type]
    ids, types = [], []
    for row in range(rows):
        longest = lengths[1] if row % 64 < 2 else lengths[0]
        ids.append(rng.integers(5, TINY["vocab_size"], int(rng.integers(5, longest + 1))).astype(np.int32))
        types.append(np.zeros_like(ids[-1]))
    split = EncodedSplit(ids, types, labels, 0, 0.0)
    return EncodedTask(lengths[1] + 2, {"train": split, "dev": split})


class Losses:
    """In place of metrics.jsonl."""

    def __init__(self):
        self.losses = []

    def write(self, step, loss=None, **others):
        self.losses.append(loss)


def finetuned(
    use_cuda_graphs,
    problem_type=SINGLE_LABEL,
    dropout=0.0,
    precision="no",
    use_lora=False,
    steps=12,
    learning_rate=1e-3,
    same_batch=False,
    attention="sdpa",
    lengths=(20, 118),
):
    """Losses of every step, and the weights at the end, of a model that is the same each time."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=finetuned.on_cpu)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 1}  # head dimension 64: flash-attn need not be built for others
    config = make_config(
        **TINY | sizes | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
        num_labels=1 if problem_type == REGRESSION else 2,
    )
    model = build(AutoModelForSequenceClassification, attention, config=config)
    if use_lora:
        lora = {"lora_r": 8, "lora_alpha": 32, "lora_dropout": dropout, "lora_target_modules": LORA_TARGETS}
        model = add_adapter(model, Namespace(model_name_or_path=".", **lora))
    model = accelerator.prepare_model(model, evaluation_mode=True)
    task, losses = encoded_task(problem_type, lengths, rows=32 if same_batch else 160), Losses()
    finetune(
        accelerator,
        model,
        task,
        Collator(3, True, 16, accelerator.device),  # the plain loop is to have the same padding
        Recipe(None, steps, num_warmup_steps=0, eval_steps=5, learning_rate=learning_rate),
        problem_type=problem_type,
        seed=7,
        micro_batch_size=32,
        eval_batch_size=160,
        selection_metric="loss",
        metrics_file=losses,
        logging_steps=1,
        name="test",
        use_cuda_graphs=use_cuda_graphs,
    )
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    AcceleratorState._reset_state(reset_partial_state=True)
    return losses.losses, weights


def assert_equal_runs(one, other, tolerance=1e-4):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for name, weight in one[1].items():
        # of keys' biases the gradient is zero but for rounding, which Adam blows up
        if not name.endswith("Wqkv.bias"):
            assert torch.allclose(weight, other[1][name], atol=tolerance, rtol=0), name


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_graphs_take_the_steps_of_the_plain_loop(graphs, layout, problem_type):
    recorded = finetuned(True, problem_type)
    assert len(graphs) > 1  # several shapes, in turn
    assert all(("cu_seqlens" in graph.inputs) == (layout == "packed") for graph in graphs)
    assert_equal_runs(recorded, finetuned(False, problem_type))
    assert len({*recorded[0]}) == 12


def test_adapters_take_the_steps_of_the_plain_loop(graphs, layout):
    recorded = finetuned(True, use_lora=True)
    assert graphs and any("lora_A" in name for name in recorded[1])
    assert_equal_runs(recorded, finetuned(False, use_lora=True))


def test_bf16_takes_about_the_steps_of_the_plain_loop(graphs):
    recorded, plain = finetuned(True, precision="bf16"), finetuned(False, precision="bf16")
    assert recorded[0] == pytest.approx(plain[0], abs=0.02)
    assert recorded[0][0] != recorded[0][-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize("longest", [118, 250])  # in a kernel of ours, and in flash-attn's
def test_flash_takes_about_the_steps_of_the_plain_loop(monkeypatch, longest, problem_type, use_lora):
    pytest.importorskip("flash_attn")
    monkeypatch.setattr(finetuned, "on_cpu", False, raising=False)
    options = {"precision": "bf16", "attention": "flash_attention_2", "lengths": (20, longest)}
    options |= {"problem_type": problem_type, "use_lora": use_lora}
    recorded, plain = finetuned(True, **options), finetuned(False, **options)
    assert recorded[0] == pytest.approx(plain[0], rel=0.02, abs=0.02)
    assert recorded[0][0] != recorded[0][-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_flash_draws_its_own_dropout_anew_in_every_step_and_again_from_the_seed(monkeypatch):
    pytest.importorskip("flash_attn")
    monkeypatch.setattr(finetuned, "on_cpu", False, raising=False)
    options = {"precision": "bf16", "attention": "flash_attention_2", "dropout": 0.3}
    losses, _ = finetuned(True, learning_rate=1e-30, same_batch=True, **options)
    assert len({*losses}) == 12
    assert losses == finetuned(True, learning_rate=1e-30, same_batch=True, **options)[0]


@pytest.mark.parametrize("use_lora", [False, True])
def test_dropout_is_a_function_of_the_seed_and_the_same_as_without_graphs(graphs, use_lora):
    options = {"dropout": 0.3, "use_lora": use_lora}
    recorded = finetuned(True, **options)
    assert_equal_runs(recorded, finetuned(True, **options))
    assert_equal_runs(recorded, finetuned(False, **options))


def test_dropout_is_drawn_anew_in_every_step(graphs):
    """With a learning rate next to 0 and one batch again and again, nothing but dropout changes the loss."""
    losses, _ = finetuned(True, dropout=0.3, learning_rate=1e-30, same_batch=True)
    assert len({*losses}) == 12
    losses, _ = finetuned(True, dropout=0.0, learning_rate=1e-30, same_batch=True)
    assert max(losses) - min(losses) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [{}, {"use_lora": True}, {"no_cuda_graphs": True}])
def test_a_run_on_a_gpu_learns_in_bf16_and_says_how_it_was_launched(task, tmp_path, monkeypatch, options):
    base = save_base(tmp_path / "base")
    parts = command(model_name_or_path=base, data_dir=task, output_dir=tmp_path / "out", save_model=True, **options)
    run_here(monkeypatch, *parts, ACCELERATE_USE_CPU="false")
    found = results(tmp_path / "out/task/seed-1")
    assert found["test"]["mcc"] > 0.5 and found["arguments"]["mixed_precision"] == "bf16"
    assert found["cuda_graphs"] == ("no_cuda_graphs" not in options)
    assert found["attn_implementation"] == fastest_attention("cuda", "bf16")
    assert found["memory_gib"] > 0
