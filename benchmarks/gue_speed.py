"""Fine-tuning on GUE: milliseconds a step and minutes a dataset, the plain loop beside steps as CUDA graphs.

    python benchmarks/gue_speed.py --data_dir GUE
    python benchmarks/gue_speed.py --device cpu --config_name configs/tiny.json --steps 10 --tasks CPD SSP

Of each of the paper's seven tasks one dataset is measured, as the others of it have rows of the same length: real ones
from --data_dir, random sequences of that length where it has none. It is run_gue.py's own training loop in bf16 (on a
CPU float32, and no graphs), from random weights, with logging and an evaluation at its end. A dataset's minutes are
those of its published steps, evaluations on dev, the test, the recording of graphs, reading and tokenising; loading a
model, and what a process does once, as compiling kernels, are not among them. Every row is appended to --output at
once; --table_only prints what is there.

Three loops, all in one run: "plain", kernel by kernel, by the fastest attention; "padded", graphs of padded batches by
sdpa, which is what runs without flash-attn; "packed", graphs of packed batches by flash, which is what runs with it.
"""

import argparse
import json
import statistics
import time
from argparse import Namespace
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from length import describe_run, free_memory, read_runs
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from dnabert2 import cuda_graphs
from dnabert2.classifiers import takes_token_types
from dnabert2.encoding import EncodedTask, encode
from dnabert2.errors import UsageError, run_script
from dnabert2.finetuning import finetune, predict, score
from dnabert2.gue import GROUPS, TASKS, Recipe, Task, select_tasks
from dnabert2.gue_arguments import eval_batch_size, recipe_of
from dnabert2.labelled import SINGLE_LABEL, Split, TaskData, load_task
from dnabert2.labelled_rows import find_table
from dnabert2.loading import ROOT, fastest_attention, load_tokenizer, new_model, set_attention
from dnabert2.padding import Collator


BASES = {"EMP": 500, "PD": 300, "CPD": 70, "TF-H": 101, "TF-M": 101, "SSP": 400, "CVC": 1000}
TRAIN_ROWS, RANDOM_DEV_ROWS = 4000, 1000  # as many batches draw on
LOOPS = ("plain", "padded", "packed")


class Clock:
    """In the place of metrics.jsonl: when lines were written. The loss in each has waited for the device."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def write(self, **values):
        self.times.append(time.perf_counter())


def random_data(task: Task) -> TaskData:
    rng = np.random.default_rng(0)
    splits = {}
    for name, rows in {"train": TRAIN_ROWS, "dev": RANDOM_DEV_ROWS, "test": 1}.items():
        letters = rng.choice(list("ACGT"), size=(rows, BASES[task.group]))
        ids = [str(row) for row in range(1, rows + 1)]
        splits[name] = Split(
            name, ids, ["".join(row) for row in letters], None, rng.integers(0, task.num_labels, rows)
        )
    return TaskData(task.name, SINGLE_LABEL, [str(label) for label in range(task.num_labels)], splits)


def find_data(group: str, data_dir: Path | None) -> tuple[Task, TaskData | None]:
    """
    A dataset of a group that is in the folder, one with train if there is; or the first one without data.

    Raises UsageError if there is no such folder.
    """
    if data_dir and not data_dir.is_dir():
        raise UsageError(f"--data_dir {data_dir}: no such folder; leave it out for random sequences")
    tasks = [task for task in TASKS if task.group == group]
    for needed in (("train", "dev", "test"), ("dev", "test")):
        for task in tasks:
            folder = data_dir and data_dir / task.name
            if folder and folder.is_dir() and all(find_table(folder, split) for split in needed):
                return task, load_task(folder)
    return tasks[0], None


def prepare(task: Task, data: TaskData | None, tokenizer: PreTrainedTokenizerBase) -> tuple[EncodedTask, dict]:
    """The task as tokens, of train as many rows as are wanted, and what it is of."""
    origin = "random" if data is None else "dev alone" if data.train_is_from_dev else "real"
    data = data or random_data(task)
    train = data.splits["train"]
    data = replace(data, splits=data.splits | {"train": train.take(np.arange(min(TRAIN_ROWS, len(train))))})
    start = time.perf_counter()
    encoded = encode(data, tokenizer)
    seconds = time.perf_counter() - start
    rows = sum(map(len, encoded.splits.values()))
    lengths = [len(ids) for ids in encoded.splits["train"].input_ids]
    facts = {"group": task.group, "dataset": task.name, "data": origin, "encode_ms_a_row": 1000 * seconds / rows}
    return encoded, facts | {"mean_tokens": statistics.mean(lengths), "max_tokens": encoded.max_seq_length}


def measure(
    loop: str,
    task: Task,
    encoded: EncodedTask,
    model: PreTrainedModel,
    accelerator: Accelerator,
    args: Namespace,
    stretch: int,
) -> dict:
    """
    Of the real loop: milliseconds a step (the median of three stretches of so many), seconds it takes before, and
    those of an evaluation, of dev or of test, whichever is larger.
    """
    device = accelerator.device
    use_cuda_graphs = loop != "plain"
    attention = "sdpa" if loop == "padded" else fastest_attention(device.type, accelerator.mixed_precision)
    set_attention(model, attention, device.type, accelerator.mixed_precision)
    steps = 4 * stretch + 1  # the first stretch warms up, and the last step is followed by an evaluation
    batch_size = task.recipe.total_train_batch_size
    collator = Collator(model.config.pad_token_id, takes_token_types(model), 1, device)
    recipe = replace(task.recipe, num_train_epochs=None, max_train_steps=steps, eval_steps=steps)
    eval_size = eval_batch_size(args, device.type, encoded.max_seq_length)
    free_memory(device)
    clock = Clock()
    finetune(
        accelerator,
        model,
        encoded,
        collator,
        recipe,
        problem_type=SINGLE_LABEL,
        seed=0,
        micro_batch_size=batch_size,
        eval_batch_size=eval_size,
        selection_metric="loss",
        metrics_file=clock,
        logging_steps=stretch,
        name=f"{task.name} {loop}",
        use_cuda_graphs=use_cuda_graphs,
    )
    stretches = np.diff(clock.times)[:-1]  # the last one is of a step and the evaluation
    step_seconds = statistics.median(stretches[1:]) / stretch
    judged = max(
        encoded.splits["dev"], encoded.splits["test"], key=len
    )  # of a dev that train is taken from little is left
    start = time.perf_counter()
    logits = predict(accelerator, model, collator, [judged], eval_size)
    score(accelerator, logits, judged.labels, SINGLE_LABEL)
    eval_seconds = time.perf_counter() - start
    accelerator.free_memory()
    return {
        "loop": loop,
        "attention": attention,
        "ms_a_step": 1000 * step_seconds,
        "start_seconds": max(0.0, stretches[0] - stretch * step_seconds),
        "eval_ms_a_row": 1000 * eval_seconds / len(judged),
        "gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def loops_that_run(accelerator: Accelerator, model: PreTrainedModel, max_seq_length: int) -> list[str]:
    if not cuda_graphs.can_record(accelerator, model, max_seq_length, None):
        return ["plain"]
    has_flash = fastest_attention(accelerator.device.type, accelerator.mixed_precision) == "flash_attention_2"
    return [loop for loop in LOOPS if loop != "packed" or has_flash]


def published_run(task: Task) -> tuple[int, int]:
    """The steps of a dataset, and the rows that its run predicts: dev at every evaluation, and test."""
    nothing_given = Namespace(**{field.name: None for field in fields(Recipe)})
    recipe = recipe_of(nothing_given, task.recipe, task.rows["train"])
    steps = recipe.max_train_steps
    dev = task.rows["dev"] or task.rows["test"]  # of covid's dev the size is not known
    return steps, -(-steps // recipe.eval_steps) * dev + task.rows["test"]


def projected_seconds(task: Task, row: dict) -> tuple[float, float]:
    """Of a whole run of a dataset by the measures of its group: in all, and of that what is not steps."""
    steps, predicted = published_run(task)
    all_rows = sum(rows or 0 for rows in task.rows.values())
    others = row["start_seconds"] + (row["eval_ms_a_row"] * predicted + row["encode_ms_a_row"] * all_rows) / 1000
    return steps * row["ms_a_step"] / 1000 + others, others


def shown(minutes: float) -> str:
    return "-" if np.isnan(minutes) else f"{minutes:.2f}"


def print_table(path: Path):
    """Of every run what was measured, and the projection to all datasets of the measured tasks."""
    for run, rows in read_runs(path):
        measured = {(row["group"], row["loop"]): row for row in rows}
        groups = [group for group in GROUPS if (group, "plain") in measured]
        print(
            f"\n{run}\n\n| task | measured on | tokens, mean and longest | attention | ms a step | × | evaluation, ms",
            end="",
        )
        print(" a 1,000 rows | start, s | GiB |\n|---|---|--:|---|--:|--:|--:|--:|--:|")
        for group in groups:
            plain = measured[group, "plain"]
            for row in (measured[group, loop] for loop in LOOPS if (group, loop) in measured):
                name = f"{row['dataset']} ({row['data']}), {row['loop']}"
                tokens = f"{row['mean_tokens']:.0f}, {row['max_tokens']}"
                cells = [group, name, tokens, row["attention"], f"{row['ms_a_step']:.2f}"]
                cells += [f"{plain['ms_a_step'] / row['ms_a_step']:.2f}", f"{1000 * row['eval_ms_a_row']:.0f}"]
                cells += [f"{row['start_seconds']:.1f}", f"{row['gib']:.1f}" if row["gib"] else "-"]
                print("|", " | ".join(cells), "|")
        print("\n| dataset | steps |", " | ".join(f"{loop}, min | of that not steps" for loop in LOOPS), "|")
        print("|---|--:|" + "--:|--:|" * len(LOOPS))
        tasks = [task for task in TASKS if task.group in groups]
        totals = np.zeros(2 * len(LOOPS))
        for task in tasks:
            minutes = []
            for loop in LOOPS:
                row = measured.get((task.group, loop))
                minutes += [seconds / 60 for seconds in projected_seconds(task, row)] if row else [np.nan, np.nan]
            totals += minutes
            print(f"| {task.name} | {published_run(task)[0]:,} |", " | ".join(map(shown, minutes)), "|")
        steps = sum(published_run(task)[0] for task in tasks)
        print(f"| **all {len(tasks)}** | {steps:,} |", " | ".join(map(shown, totals)), "|")


def run_all(args: Namespace):
    device = args.device
    accelerator = Accelerator(mixed_precision="bf16" if device.type == "cuda" else "no", cpu=device.type == "cpu")
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    run = f"{describe_run(args)[0]}, {accelerator.mixed_precision}, {args.steps} steps a stretch"
    models = {}
    for group in dict.fromkeys(task.group for task in select_tasks(args.tasks)):
        start = time.perf_counter()
        task, data = find_data(group, args.data_dir)
        read_seconds = time.perf_counter() - start
        if data:
            read_ms = 1000 * read_seconds / sum(map(len, data.splits.values()))
        encoded, facts = prepare(task, data, tokenizer)
        facts["encode_ms_a_row"] += read_ms if data else 0.0
        if task.num_labels not in models:
            names = [str(label) for label in range(task.num_labels)]
            labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
            model = new_model(
                args.config_name, tokenizer, None, auto_class=AutoModelForSequenceClassification, **labels
            )
            models[task.num_labels] = accelerator.prepare_model(model, evaluation_mode=True)
        model = models[task.num_labels]
        for loop in loops_that_run(accelerator, model, encoded.max_seq_length):
            measure(loop, task, encoded, model, accelerator, args, stretch=1)  # a process compiles its kernels once
            row = {"run": run, **facts, **measure(loop, task, encoded, model, accelerator, args, args.steps)}
            with args.output.open("a") as file:
                print(json.dumps(row), file=file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="GUE's folder (default: random sequences)")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="as run_gue.py's; their groups (default: all)")
    parser.add_argument("--config_name", default=str(ROOT / "configs" / "117M.json"), help="sizes of the model")
    parser.add_argument("--device", type=torch.device, default="cuda", help="default: cuda")
    parser.add_argument("--steps", type=int, default=50, help="of a stretch; there are four (default: 50)")
    parser.add_argument("--per_device_eval_batch_size", type=int, help="default: run_gue.py's")
    parser.add_argument("--output", type=Path, default=Path("output/gue_speed.jsonl"), help="default: %(default)s")
    parser.add_argument("--table_only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.table_only and not args.output.is_file():
        parser.error(f"--output {args.output}: no such file")
    if args.device.type == "cuda" and not (args.table_only or torch.cuda.is_available()):
        parser.error("no CUDA device here: say --device cpu")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.hidden_dropout_prob = 0.1  # the configurations' own
    if not args.table_only:
        run_all(args)
    print_table(args.output)


if __name__ == "__main__":
    run_script(main)
