"""Several processes, with whole weights (DDP) and in shards (FSDP2): the course of one, and exact resume.

pytest tests/test_run_mlm_processes.py
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from mlm_runs import DROPOUT, arguments, column, finish, metrics, run_here, small_corpus
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from dnabert2.loading import ROOT


OPTIONS = {
    "per_device_train_batch_size": 8,  # accumulated twice
    "per_device_eval_batch_size": 35,  # of 71 rows: one process has two batches, the other would have one
    "max_train_steps": 4,
    "eval_steps": 2,
    "checkpointing_steps": 2,
}
DDP, FSDP = ({"ACCELERATE_USE_FSDP": use, "ACCELERATE_MIXED_PRECISION": "no"} for use in ("false", "true"))
BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs: `one` and `one_bf16` of one process, the others of two, which one launch has started."""
    folder = tmp_path_factory.mktemp("processes")
    corpus = small_corpus(folder)

    def command(name, **options):
        return arguments(corpus, folder / name, **OPTIONS | options)

    def resume(name, **options):
        return command(f"{name}_resumed", resume_from_checkpoint=folder / name / "checkpoint-2", **options)

    with pytest.MonkeyPatch.context() as patch:
        one_process = {"per_device_train_batch_size": 32}
        run_here(patch, *command("one", **one_process))
        run_here(patch, *command("one_bf16", **one_process), **BF16)
    dropout = {"config_overrides": DROPOUT, "eval_steps": None}
    started = [
        (FSDP, command("sharded")),
        (FSDP | BF16, command("sharded_bf16")),
        (FSDP, command("fsdp", **dropout)),
        (FSDP, resume("fsdp", **dropout)),
        (DDP, command("ddp", **dropout)),
        (DDP, resume("ddp", **dropout)),
        (DDP, resume("sharded")),
    ]
    (folder / "runs.json").write_text(json.dumps(started, default=str))
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--quiet", "--main_process_port", "0"]
    launcher += ["--config_file", str(ROOT / "configs" / "accelerate" / "fsdp2.yaml"), "--dynamo_backend", "no"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, str(ROOT / "tests" / "several_runs.py"), str(folder / "runs.json")],
        # torch shards on GPUs wherever it sees any
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    finish(process)
    return folder


def assert_same_course(one, other, within):
    for name in ("loss", "validation_loss"):
        assert column(one, name) == pytest.approx(column(other, name), abs=within)
    # torch's norm of float32 errs by 1e-5 of itself on large tensors, and by less on their shards
    assert column(one, "grad_norm") == pytest.approx(column(other, "grad_norm"), rel=10 * within)
    assert len(column(one, "loss")) == 4 and len(column(one, "validation_loss")) == 3


def test_shards_give_the_losses_and_weights_of_one_process(runs):
    assert_same_course(runs / "one", runs / "sharded", within=1e-5)
    one, other = (load_file(runs / name / "model.safetensors") for name in ("one", "sharded"))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_bf16_is_the_autocast_of_one_process(runs):
    """Accelerate's policy for FSDP2 would round every loss to bf16: multiples of 1/32 here."""
    assert_same_course(runs / "one_bf16", runs / "sharded_bf16", within=3e-4)
    assert column(runs / "sharded_bf16", "loss") != column(runs / "sharded", "loss")
    assert {weight.dtype for weight in load_file(runs / "sharded_bf16" / "model.safetensors").values()} == {
        torch.float32
    }


def test_a_sharded_run_saves_the_files_of_any_other(runs):
    for folder in ("", "checkpoint-2", "checkpoint-4"):
        one, other = ({path.name: path for path in (runs / name / folder).iterdir()} for name in ("one", "sharded"))
        assert one.keys() == other.keys()
        for name in one.keys() - {"metrics.jsonl", "arguments.json", "all_results.json", "run_state.json"}:
            if one[name].suffix in (".json", ".py"):
                assert one[name].read_bytes() == other[name].read_bytes(), name
            elif one[name].suffix == ".safetensors":
                assert load_file(one[name]).keys() == load_file(other[name]).keys(), name
    assert not list((runs / "sharded").rglob("*.tmp*"))


def test_a_sharded_checkpoint_loads_as_any_other(runs):
    for folder in (runs / "sharded", runs / "sharded" / "checkpoint-2"):
        model, info = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(info.values())
        weights, state = load_file(folder / "model.safetensors"), model.state_dict()
        assert all(torch.equal(weights[name], state[name]) for name in weights)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["fsdp", "ddp"])
def test_a_resumed_run_of_two_processes_ends_the_same_bit_for_bit(runs, name):
    whole, resumed = runs / name, runs / f"{name}_resumed"
    for path in ("model.safetensors", "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.safetensors"):
        assert (whole / path).read_bytes() == (resumed / path).read_bytes()
    assert metrics(whole)[2:] == metrics(resumed) and [line["step"] for line in metrics(resumed)] == [3, 4]


def test_a_sharded_checkpoint_goes_on_without_shards(runs):
    whole, resumed = runs / "sharded", runs / "sharded_resumed"
    assert column(resumed, "loss") == pytest.approx(column(whole, "loss")[2:], abs=1e-5)
