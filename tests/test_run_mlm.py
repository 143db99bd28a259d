"""Pretraining end to end: it learns, leaves loadable models, and a killed run resumed is the uninterrupted one.

pytest tests/test_run_mlm.py
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from mlm_runs import DROPOUT, arguments, column, finish, metrics, results, run_here, small_corpus, start
from safetensors.torch import load_file

from dnabert2.checkpoints import OPTIMIZER_FILE, read_state
from dnabert2.corpus import prepare_corpus
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sources import file_sources


BASE = {  # dropout, accumulation, loader workers and a last step without a checkpoint: all that resuming must survive
    "config_overrides": DROPOUT,
    "per_device_train_batch_size": 16,
    "dataloader_num_workers": 2,
    "max_train_steps": 40,
    "num_warmup_steps": 2,
    "eval_steps": 20,
    "checkpointing_steps": 9,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("run_mlm"))


@pytest.fixture(scope="module")
def base_run(corpus):
    """The folder of an uninterrupted run, started as a user does."""
    output_dir = corpus.parent / "base"
    finish(start(*arguments(corpus, output_dir, **BASE)))
    return output_dir


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """A function that runs the script in this process and gives the output folder."""

    def run_with(name="run", environment=None, **options):
        run_here(monkeypatch, *arguments(corpus, tmp_path / name, **options), **(environment or {}))
        return tmp_path / name

    return run_with


def assert_same_course(one, other):
    """Losses and gradient norms of two runs agree to 1e-5 at every step."""
    for name in ("loss", "grad_norm"):
        assert column(one, name) == pytest.approx(column(other, name), abs=1e-5)
    assert len(column(one, "loss")) == 6


# --- what a run leaves -------------------------------------------------------------------------------------------


def test_the_loss_falls(base_run):
    loss, validation = column(base_run, "loss"), column(base_run, "validation_loss")
    assert loss[0] == pytest.approx(math.log(4096), abs=0.2)
    assert sum(loss[-5:]) / 5 < loss[0] - 0.8
    assert len(validation) == 3 and validation[0] > validation[1] > validation[2]


def test_metrics_have_a_line_a_step_with_every_field(base_run):
    lines = metrics(base_run, leave_out=())
    assert [line["step"] for line in lines] == list(range(41))
    fields = {"step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib"}
    evaluated = {"validation_loss", "validation_accuracy"}
    assert set(lines[0]) == {"step", "tokens"} | evaluated
    for line in lines[1:]:
        assert set(line) == fields | (evaluated if line["step"] in (20, 40) else set())
        assert line["tokens_per_second"] > 0 and line["grad_norm"] > 0
    rates = column(base_run, "learning_rate")
    assert rates[:3] == pytest.approx([0, 2.5e-3, 5e-3]) and rates[-1] == pytest.approx(5e-3 / 38)


def test_all_results_sum_the_run_up(base_run, corpus):
    found, last = results(base_run), metrics(base_run)[-1]
    assert {key: found[key] for key in last} == last
    assert found["train_tokens"] == 40 * 32 * 32
    assert found["parameters"] == sum(w.numel() for w in load_file(base_run / "model.safetensors").values())
    assert 0 < found["most_frequent_token_accuracy"] < 1 and 0 < found["unigram_loss"] < math.log(4096)


LOAD = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

fill_mask = pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
found = {"sequence": fill_mask("ACGTTGCA[MASK]TTGACCATG", top_k=1)[0]["sequence"], "wrong": []}
for folder in sys.argv[1:]:
    model, info = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    weights, state = load_file(Path(folder) / "model.safetensors"), model.state_dict()
    if not all(torch.equal(weights[name], state[name]) for name in weights) or any(info.values()):
        found["wrong"].append([folder, str(info)])
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("ACGT", return_tensors="pt")
    found["wrong"] += [] if model(**ids).logits.isfinite().all() else [[folder, "logits"]]
print(json.dumps(found))
"""


def test_model_and_checkpoints_load_in_a_fresh_process_from_their_folders_alone(base_run, tmp_path):
    moved = shutil.copytree(base_run, tmp_path / "moved")
    folders = [moved, *sorted(moved.glob("checkpoint-*"))]
    assert [folder.name for folder in folders] == ["moved"] + [f"checkpoint-{step}" for step in (18, 27, 36, 9)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *folders], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["sequence"].startswith("ACGTTGCA") and found["sequence"].endswith("TTGACCATG")


# --- exact resume ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed_run(corpus, base_run):
    """The folder of a run with the arguments of the base run, killed after its first checkpoint and resumed."""
    output_dir = corpus.parent / "killed"
    process = start(*arguments(corpus, output_dir, **BASE))
    file, deadline = output_dir / "metrics.jsonl", time.monotonic() + 120
    try:
        while not file.exists() or file.read_text().count("\n") < 13:  # step 0 to 12
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher, the script and its loader workers
        process.communicate()
    assert not (output_dir / "model.safetensors").exists() and (output_dir / "checkpoint-9").is_dir()
    assert 12 <= file.read_text().count("\n") - 1 < 36
    finish(start(*arguments(corpus, output_dir, resume_from_checkpoint="latest", **BASE)))
    return output_dir


def test_a_killed_run_resumed_ends_in_the_same_weights_bit_for_bit(base_run, resumed_run):
    for path in ("model.safetensors", "checkpoint-36/model.safetensors"):
        assert (base_run / path).read_bytes() == (resumed_run / path).read_bytes()


def test_a_killed_run_resumed_has_the_same_optimizer_state(base_run, resumed_run):
    one, other = (load_file(path / "checkpoint-36" / OPTIMIZER_FILE) for path in (base_run, resumed_run))
    assert one.keys() == other.keys() and len(one) > 60
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert read_state(base_run / "checkpoint-36") == read_state(resumed_run / "checkpoint-36")


def test_a_killed_run_resumed_has_the_same_metrics_and_files(base_run, resumed_run):
    assert metrics(base_run) == metrics(resumed_run)
    assert not list(resumed_run.rglob("*.tmp*"))
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (base_run, resumed_run)]
    assert names[0] == names[1]


def test_resuming_a_run_without_a_checkpoint_begins_anew(run):
    first = run(max_train_steps=2, eval_steps=1)
    before = metrics(first)
    (first / "all_results.json").unlink()  # as if killed at the very end
    again = run(max_train_steps=2, eval_steps=1, resume_from_checkpoint="latest")
    assert [line["step"] for line in metrics(again)] == [0, 1, 2] and metrics(again) == before


# --- the same batch, cut differently -----------------------------------------------------------------------------


def test_two_processes_give_the_losses_of_one_with_twice_the_batch(run, corpus, tmp_path):
    one = run("one", eval_steps=3)
    two = tmp_path / "two"
    command = arguments(corpus, two, per_device_train_batch_size=16, eval_steps=3)
    printed = finish(start(*command, processes=2))
    assert "on 2 x cpu" in printed and "2 process(es) x 16 x 1 accumulated" in printed
    assert printed.count("Step 6: validation_loss") == 1  # told by one process
    assert_same_course(one, two)
    assert column(two, "validation_loss") == pytest.approx(column(one, "validation_loss"), abs=1e-5)


def test_a_process_without_validation_rows_does_not_hang_the_others(corpus, tmp_path):
    one_window = tmp_path / "one_window.fa"
    one_window.write_text(">a\n" + (corpus / "alpha.fa").read_text().split("\n", 1)[1].replace("\n", "")[:240] + "\n")
    options = {"per_device_train_batch_size": 16, "max_train_steps": 2, "eval_steps": 1, "validation_file": one_window}
    options["validation_split_percentage"] = None
    printed = finish(start(*arguments(corpus, tmp_path / "run", **options), processes=2))
    assert "1 to validate" in printed and len(column(tmp_path / "run", "validation_loss")) == 3


def test_accumulation_gives_the_losses_of_the_whole_batch(run):
    whole = run("whole")
    assert_same_course(whole, run("accumulated", per_device_train_batch_size=8))
    # given, it decides the total; and the launcher's own number must not divide the loss
    given = {"gradient_accumulation_steps": 4, "total_train_batch_size": None, "per_device_train_batch_size": 8}
    assert_same_course(whole, run("given", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, **given))


def test_eager_attention_and_gradient_checkpointing_change_no_loss(run):
    default = run("default")
    assert_same_course(default, run("eager", attn_implementation="eager"))
    assert_same_course(default, run("checkpointing", gradient_checkpointing=True))


# --- other ways to run -------------------------------------------------------------------------------------------


def test_a_compiled_model_is_saved_under_its_own_names(run, base_run):
    compiled = run(environment={"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"}, max_train_steps=2, checkpointing_steps=1)
    names = set(load_file(base_run / "model.safetensors"))
    for folder in (compiled, compiled / "checkpoint-1"):
        assert set(load_file(folder / "model.safetensors")) == names
    assert column(compiled, "loss") == pytest.approx(column(run("plain", max_train_steps=2), "loss"), abs=1e-4)


def test_bf16_autocast_trains_and_saves_float32(run):
    half, full = run("half", {"ACCELERATE_MIXED_PRECISION": "bf16"}), run("full")
    assert column(half, "loss") != column(full, "loss")
    assert column(half, "loss") == pytest.approx(column(full, "loss"), abs=0.05)
    assert {weight.dtype for weight in load_file(half / "model.safetensors").values()} == {torch.float32}


def test_training_goes_on_from_a_checkpoint_in_a_new_run(run, base_run):
    options = {"model_name_or_path": base_run / "checkpoint-36", "learning_rate": 1e-9, "max_train_steps": 1}
    further = run(**options, config_name=None, config_overrides=None)
    assert column(further, "loss")[0] < column(base_run, "loss")[0] - 0.5
    old, new = (load_file(folder / "model.safetensors") for folder in (base_run / "checkpoint-36", further))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert {file.name for file in further.iterdir()} >= {"modeling_dnabert2.py", "tokenizer.json", "config.json"}


def test_epochs_decide_the_steps_and_validation_files_the_validation(run, corpus, tmp_path, capsys):
    train, held_out = (sorted(map(str, corpus.glob(pattern))) for pattern in ("[abg]*.fa", "delta.fa"))
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    data = prepare_corpus(
        file_sources(train),
        tokenizer,
        max_seq_length=32,
        cache_dir=tmp_path,
        validation_sources=file_sources(held_out),
    )
    pattern = corpus / "[abg]*.fa"
    options = {"validation_file": held_out[0], "validation_split_percentage": None}
    folder = run(train_file=pattern, max_train_steps=None, num_train_epochs=0.5, **options)
    steps = math.ceil(len(data.train) / 2 / 32)
    assert [line["step"] for line in metrics(folder)] == list(range(1, steps + 1))
    assert (
        f"{len(data.train):,} sequences of 32 to train, {len(data.validation):,} to validate"
        in capsys.readouterr().out
    )
    assert results(folder)["train_tokens"] == steps * 32 * 32


def test_without_validation_there_are_no_validation_values(run):
    found = results(run(validation_split_percentage=0, max_train_steps=2))
    assert not [key for key in found if "validation" in key or "unigram" in key]


def test_batches_without_a_masked_token_do_no_harm(run):
    options = {"total_train_batch_size": 1, "per_device_train_batch_size": 1, "mlm_probability": 0.01}
    folder = run(max_train_steps=5, **options)
    assert 0.0 in column(folder, "loss") and all(map(math.isfinite, column(folder, "loss")))
    assert all(weight.isfinite().all() for weight in load_file(folder / "model.safetensors").values())
