"""One fine-tuning: batches, losses, predictions of whole splits; a run is a function of its seed, not of processes.

pytest tests/test_finetuning.py
"""

import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from gue_runs import SIZES, command, lines, predictions, results, run_here, save_base, write_task
from mlm_runs import finish
from models import ROOT
from transformers.modeling_outputs import SequenceClassifierOutput

from dnabert2.encoding import EncodedSplit, EncodedTask
from dnabert2.errors import UsageError
from dnabert2.finetuning import finetune, is_better, predict, probabilities, row_losses, score
from dnabert2.gue import Recipe
from dnabert2.gue_arguments import recipe_of
from dnabert2.labelled import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dnabert2.padding import Collator
from run_gue import default_precision


CPU = torch.device("cpu")


def split_of(*rows, types=False):
    ids = [np.array(row, dtype=np.int32) for row in rows]
    return EncodedSplit(ids, [row % 2 for row in ids] if types else None, np.arange(len(rows)), 0, 0.0)


def test_losses_of_rows_are_those_of_torch():
    logits = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    classes, several, values = torch.tensor([1, 0]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0.5, 2.0])
    functional = torch.nn.functional
    assert row_losses(logits, classes, SINGLE_LABEL).mean() == functional.cross_entropy(logits, classes)
    expected = functional.binary_cross_entropy_with_logits(logits, several)
    assert row_losses(logits, several, MULTI_LABEL).mean() == pytest.approx(expected.item())
    assert row_losses(logits[:, :1], values, REGRESSION).tolist() == [0.25, 2.25]
    assert row_losses(logits.bfloat16(), classes, SINGLE_LABEL).dtype == torch.float32


def test_probabilities_are_means_over_strands():
    logits = np.array([[[0.0, 0.0]], [[0.0, np.log(3)]]], dtype=np.float32)
    assert probabilities(logits, SINGLE_LABEL) == pytest.approx(np.array([[0.375, 0.625]]))
    assert probabilities(logits, MULTI_LABEL) == pytest.approx(np.array([[0.5, 0.625]]))
    assert probabilities(logits[..., 1:], REGRESSION) == pytest.approx([np.log(3) / 2])


class Echo(torch.nn.Module):
    """Its logits are the first and the sum of a row's tokens."""

    def forward(self, input_ids, attention_mask):
        kept = input_ids * attention_mask
        return SequenceClassifierOutput(logits=torch.stack([kept[:, 0], kept.sum(dim=1)], dim=1).float())


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_row_is_predicted_once_in_its_place(multiple, batch_size):
    rows = [[10 * n + 1, *range(n % 5)] for n in range(11)]
    logits = predict(
        Accelerator(cpu=True), Echo(), Collator(7, True, multiple, CPU), [split_of(*rows)] * 2, batch_size
    )
    assert logits.shape == (2, 11, 2)
    assert logits[0].tolist() == logits[1].tolist() == [[row[0], sum(row)] for row in rows]


def test_broken_weights_are_told():
    class Broken(Echo):
        def forward(self, **batch):
            return SequenceClassifierOutput(logits=super().forward(**batch).logits / 0)

    with pytest.raises(UsageError, match="lower --learning_rate"):
        predict(Accelerator(cpu=True), Broken(), Collator(7, True, 1, CPU), [split_of([0])], 4)


def test_the_best_is_the_lowest_loss_or_the_highest_score_and_the_first_of_equals():
    first, second = {"loss": 0.5, "mcc": 0.3}, {"loss": 0.4, "mcc": None}
    assert is_better(first, None, "mcc") and is_better(second, first, "loss")
    assert not is_better(second, first, "mcc") and is_better(first, second, "mcc")
    assert not is_better(first, first, "loss") and not is_better(first, first, "mcc")


class Normed(torch.nn.Module):
    """A classifier of a row's tokens through BatchNorm, whose running means are no parameters."""

    def __init__(self):
        super().__init__()
        self.norm, self.classifier = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        return SequenceClassifierOutput(logits=self.classifier(self.norm(input_ids.float())))


class Nowhere:
    def write(self, **values):
        pass


def test_the_best_weights_come_back_with_the_statistics_they_had():
    rng, accelerator, collator = np.random.default_rng(0), Accelerator(cpu=True), Collator(7, True, 1, CPU)
    rows, labels = [*rng.integers(0, 50, size=(16, 4)).astype(np.int32)], rng.integers(0, 2, size=16)
    splits = {"train": EncodedSplit(rows, None, labels, 0, 0.0), "dev": EncodedSplit(rows, None, 1 - labels, 0, 0.0)}
    torch.manual_seed(0)
    model = Normed()
    recipe = Recipe(
        None, max_train_steps=30, num_warmup_steps=0, eval_steps=1, total_train_batch_size=8, learning_rate=0.3
    )
    best = finetune(
        accelerator,
        model,
        EncodedTask(8, splits),
        collator,
        recipe,
        problem_type=SINGLE_LABEL,
        seed=0,
        micro_batch_size=8,
        eval_batch_size=16,
        selection_metric="loss",
        metrics_file=Nowhere(),
        logging_steps=10,
        name="normed",
    )
    logits = predict(accelerator, model, collator, [splits["dev"]], 16)
    assert best["step"] < 30  # dev's labels are the opposite of train's
    assert score(accelerator, logits, splits["dev"].labels, SINGLE_LABEL)["loss"] == pytest.approx(best["loss"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task whose rows no number of processes or batches divides."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_task(folder / "task", rows=(61, 23, 27))
    save_base(folder / "base")
    return folder


def options_of(folder, name, **options):
    return command(model_name_or_path=folder / "base", data_dir=folder / "task", output_dir=folder / name, **options)


def test_a_run_is_a_function_of_its_seed_with_dropout_and_strands(folder, monkeypatch):
    dropout = save_base(folder / "dropout", f"{SIZES},hidden_dropout_prob=0.1,attention_probs_dropout_prob=0.1")
    for name in ("first", "again"):
        torch.rand(3)  # the state of the global generator is another
        run_here(
            monkeypatch,
            *command(
                model_name_or_path=dropout, data_dir=folder / "task", output_dir=folder / name, reverse_complement=True
            ),
        )
    one, other = (folder / name / "task/seed-1" for name in ("first", "again"))
    assert lines(one) == lines(other) and predictions(one) == predictions(other)


def test_accumulated_batches_take_the_steps_of_whole_ones(folder, monkeypatch):
    run_here(monkeypatch, *options_of(folder, "whole"))
    run_here(
        monkeypatch,
        *options_of(folder, "parts", per_device_train_batch_size=4, per_device_eval_batch_size=5),
    )
    assert_same(folder / "whole", folder / "parts")


def test_two_processes_give_the_numbers_of_one(folder, monkeypatch):
    run_here(monkeypatch, *options_of(folder, "one", eval_steps=4, save_model=True))
    parts = options_of(folder, "two", eval_steps=4, save_model=True, per_device_eval_batch_size=5)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", *torchrun, str(ROOT / "run_gue.py"), *parts],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    finish(process)
    assert_same(folder / "one", folder / "two")
    assert results(folder / "two/task/seed-1")["num_processes"] == 2
    assert (folder / "two/task/seed-1/model.safetensors").is_file()


def assert_same(one, other):
    one, other = (at / "task/seed-1" for at in (one, other))
    for line, its_line in zip(lines(one), lines(other), strict=True):
        assert line == pytest.approx(its_line, abs=1e-4)
    found, expected = ([float(row["probability_1"]) for row in predictions(at)] for at in (one, other))
    assert found == pytest.approx(expected, abs=1e-4) and len(found) == 27
    assert [row["row"] for row in predictions(other)] == [str(number) for number in range(1, 28)]
    assert results(one)["test"] == pytest.approx(results(other)["test"], abs=1e-4)


def test_a_short_run_is_evaluated_five_times_unless_told_otherwise():
    def eval_steps(**given):
        args = Namespace(**{field.name: None for field in fields(Recipe)} | given)
        return recipe_of(args, Recipe(), 3200).eval_steps

    assert (eval_steps(), eval_steps(max_train_steps=4), eval_steps(max_train_steps=5000)) == (60, 1, 200)
    assert eval_steps(eval_steps=150) == 150


@pytest.mark.parametrize(
    ("environment", "has_gpu", "expected"),
    [
        ({}, True, "bf16"),
        ({}, False, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True, None),
        ({"ACCELERATE_USE_CPU": "true"}, True, None),
    ],
)
def test_bf16_is_for_gpus_where_the_launcher_chose_nothing(monkeypatch, environment, has_gpu, expected):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert default_precision() == expected
