"""predictions.csv: of each row its label, what is predicted, and the probability of every label."""

import csv
from argparse import Namespace
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dnabert2 import classifiers
from dnabert2.checkpoints import RESULTS_FILE
from dnabert2.encoding import encode, position_limit
from dnabert2.errors import UsageError
from dnabert2.files import write_whole
from dnabert2.finetuning import predict, probabilities, strands_of
from dnabert2.gue_arguments import eval_batch_size
from dnabert2.label_scale import read_scale
from dnabert2.labelled import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Split, TaskData, read_unlabelled
from dnabert2.labelled_rows import SEPARATOR
from dnabert2.loading import load_tokenizer
from dnabert2.padding import Collator, length_multiple


PREDICTIONS_FILE = "predictions.csv"


def write_predictions(file: Path, split: Split, values: np.ndarray, problem_type: str, label_names: Sequence[str]):
    """
    Writes the predictions of a split, in its order.

    Columns: row (from 1), id (if the split has names of its own), label (if known), predicted, and probability_NAME
    of each label. Several labels of a row have ";" between them, and are predicted above 0.5.

    Args:
        values: as of `finetuning.probabilities`.
    """
    numbers = [str(number) for number in range(1, len(split) + 1)]
    columns = {"row": numbers}
    if split.ids != numbers:
        columns["id"] = split.ids
    if split.labels is not None:
        columns["label"] = _names(split.labels, problem_type, label_names)
    if problem_type == REGRESSION:
        columns["predicted"] = [_number(value) for value in values]
    else:
        chosen = values.argmax(axis=1) if problem_type == SINGLE_LABEL else values > 0.5
        columns["predicted"] = _names(chosen, problem_type, label_names)
        for name, column in zip(label_names, values.T, strict=True):
            columns[f"probability_{name}"] = [_number(value) for value in column]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_whole(file, text.getvalue())


def _number(value: float) -> str:
    return f"{value:.7g}"


def _names(labels: np.ndarray, problem_type: str, label_names: Sequence[str]) -> list[str]:
    """Labels as their file has them."""
    if problem_type == SINGLE_LABEL:
        return [label_names[label] for label in labels]
    if problem_type == MULTI_LABEL:
        return [SEPARATOR.join(label_names[i] for i in np.flatnonzero(row)) for row in labels]
    return [_number(label) for label in labels]


def predict_file(args: Namespace, accelerator: Accelerator) -> Path:
    """Predicts --predict_file by the fine-tuned model of the arguments, and returns where that is written."""
    if (args.output_dir / RESULTS_FILE).exists():
        raise UsageError(
            f"--output_dir {args.output_dir} holds a finished run and its {PREDICTIONS_FILE}: name another one"
        )
    split = read_unlabelled(args.predict_file)
    model = classifiers.load_finetuned(args.model_name_or_path, args.trust_remote_code)
    tokenizer = load_tokenizer(args.tokenizer_name or args.model_name_or_path, args.trust_remote_code)
    config = model.config
    problem_type = args.problem_type or config.problem_type
    if problem_type is None:
        problem_type = REGRESSION if config.num_labels == 1 else SINGLE_LABEL
    label_names = [config.id2label[index] for index in range(config.num_labels)]
    data = TaskData(str(args.predict_file), problem_type, label_names, {"test": split})
    limit = position_limit(model)
    task = encode(data, tokenizer, args.max_seq_length, limit, *classifiers.read_reading(config, args))
    classifiers.use_attention(args, model, accelerator)
    collator = Collator(
        tokenizer.pad_token_id,
        classifiers.takes_token_types(model),
        length_multiple(accelerator, task.max_seq_length),
        accelerator.device,
    )
    model = accelerator.prepare_model(model, evaluation_mode=True)
    with torch.inference_mode():
        batch_size = eval_batch_size(args, accelerator.device.type, task.max_seq_length)
        logits = predict(accelerator, model, collator, strands_of(task, "test"), batch_size)
    file = args.output_dir / PREDICTIONS_FILE
    if accelerator.is_main_process:
        make_folder(args.output_dir)
        values = probabilities(logits, problem_type, read_scale(config))
        write_predictions(file, split, values, problem_type, label_names)
        if cut := task.splits["test"].truncated:
            accelerator.print(f"{cut:,} rows were cut to {task.max_seq_length} tokens")
    return file


def make_folder(folder: Path):
    """Raises UsageError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir: {folder} is no folder and cannot become one: {error.strerror}") from error
