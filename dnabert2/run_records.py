"""What a run has left of its model for others to read, in the card and beside it: recipe, scores, curves."""

import json
import re
from argparse import Namespace
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath

from huggingface_hub import EvalResult
from matplotlib.figure import Figure

from dnabert2 import curves
from dnabert2.checkpoints import METRICS_FILE, RESULTS_FILE, STATE_FILE
from dnabert2.errors import UsageError
from dnabert2.files import write_whole
from dnabert2.gue import TASKS_BY_NAME
from dnabert2.gue_report import JSON_FILE, MARKDOWN_FILE, PICTURE_FILE
from dnabert2.gue_sources import model_fingerprint
from dnabert2.released_files import read_json


CURVES, VALIDATION = "curves.png", "validation.md"
WRITTEN = {RESULTS_FILE, METRICS_FILE, CURVES, VALIDATION, MARKDOWN_FILE, PICTURE_FILE}  # by `write_results`
METRICS = {  # of dnabert2.metrics: the Hub's name, and a title
    "mcc": ("matthews_correlation", "MCC"),
    "macro_f1": ("f1", "macro F1"),
    "micro_f1": ("f1", "micro F1"),
    "accuracy": ("accuracy", "accuracy"),
    "auroc": ("roc_auc", "AUROC"),
    "average_precision": ("average_precision", "average precision"),
    "spearman": ("spearmanr", "Spearman correlation"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "r2": ("r_squared", "R²"),
    "mse": ("mse", "mean squared error"),
}
PRETRAINING = """min_seq_length max_seq_length mlm_probability mlm_span boundary_dropout total_train_batch_size
max_train_steps learning_rate lr_scheduler_type num_warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
max_grad_norm sampling_temperature reverse_complement streaming attn_implementation seed""".split()
FINE_TUNING = """kmer reverse_complement selection_metric use_lora lora_r lora_alpha lora_dropout lora_target_modules
seed mixed_precision""".split()  # arguments, beside the recipe


def hub_names(args: Namespace) -> dict[str, str | None]:
    """The model and the dataset that a command names, as far as they are on the Hub and not folders."""
    named = {"base_model": args.model_name_or_path, "dataset": args.dataset_name}
    return {key: name if name and not Path(name).is_dir() else None for key, name in named.items()}


def recipe_of_pretraining(args: Namespace, corpus: str, mixed_precision: str, num_processes: int) -> dict:
    """What a card tells of a run of run_mlm.py, as JSON holds it; without folders. `corpus` describes it."""
    values = {name: getattr(args, name) for name in PRETRAINING}
    return {
        **hub_names(args),
        "is_further": bool(args.model_name_or_path),
        "files": [PurePath(name).name for name in map(str, args.train_file or ())],
        "corpus": re.sub(r" \((none of|give) [^)]*\)", "", corpus),  # without advice
        "hyperparameters": values | {"mixed_precision": mixed_precision, "num_processes": num_processes},
    }


@dataclass
class Record:
    """What a run's folder knows of its model; empty where it knows nothing."""

    results: dict  # all_results.json: of run_gue.py with "task", of dnabert2.convert with "converted_from"
    recipe: dict  # of `recipe_of_pretraining`
    step: int | None  # of a checkpoint-STEP
    metrics: list[dict]  # lines up to that step
    base_model: str | None
    dataset: str | None
    hyperparameters: dict


def read_record(folder: Path) -> Record:
    """Reads a run's folder, a checkpoint-STEP with the metrics beside it or above, or a merged/ with its run above."""
    is_checkpoint = (folder / STATE_FILE).is_file()
    state = read_json(folder / STATE_FILE) if is_checkpoint else {}
    of_run = [folder, folder.resolve().parent] if is_checkpoint or folder.name == "merged" else [folder]
    results_file, metrics_file = (
        next((path / name for path in of_run if (path / name).is_file()), None)
        for name in (RESULTS_FILE, METRICS_FILE)
    )
    results = read_json(results_file) if results_file and not is_checkpoint else {}
    recipe = state.get("recipe") or results.get("recipe") or {}
    step = state.get("step")
    texts = metrics_file.read_text().splitlines() if metrics_file else []
    lines = [json.loads(text) for text in texts if text.endswith("}")]  # the last can be torn
    lines = [line for line in lines if step is None or line["step"] <= step]
    names = {"base_model": results["converted_from"]} if results.get("is_on_hub") else recipe
    hyperparameters = recipe.get("hyperparameters", {})
    if "task" in results:
        arguments = results["arguments"]
        is_on_hub = arguments.get("model_files") is None
        names = {"base_model": arguments["model_name_or_path"] if is_on_hub else None, "dataset": None} | results
        hyperparameters = recipe | {"max_seq_length": results["max_seq_length"]}
        hyperparameters |= {name: arguments[name] for name in FINE_TUNING if arguments.get(name) not in (None, False)}
        hyperparameters["num_processes"] = results["num_processes"]
        recipe = {}
    return Record(
        results, recipe, step, lines, names.get("base_model"), names.get("dataset"), _without_none(hyperparameters)
    )


def _without_none(values: dict) -> dict:
    return {key: value for key, value in values.items() if value is not None}


def results_of_run(results: dict, dataset: str | None) -> list[EvalResult]:
    """The scores of test of a run of run_gue.py."""
    name, arguments = results["task"], results["arguments"]
    of_gue = name in TASKS_BY_NAME
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset or ("GUE" if of_gue else "labelled-sequences"),
            dataset_name=f"GUE {name}" if of_gue else name,
            dataset_config=name if of_gue else arguments["dataset_config_name"],
            dataset_split="test",
            metric_type=METRICS[key][0],
            metric_name=METRICS[key][1],
            metric_value=round(value, 6),
        )
        for key, value in results["test"].items()
        if key in METRICS and value is not None
    ]


def results_of_gue(folder: Path, model: Path) -> tuple[list[EvalResult], list[dict]]:
    """
    Scores of test, fine-tuned from a pretrained model: means over seeds, and the datasets of gue_results.json.

    Raises UsageError unless they are all of this model.
    """
    if not (folder / JSON_FILE).is_file():
        raise UsageError(f"--gue_results {folder}: {JSON_FILE} is missing; python -m dnabert2.gue_report writes it")
    summary = read_json(folder / JSON_FILE)
    if {run.get("model_files") for run in summary["runs_of"]} != {model_fingerprint(str(model))}:
        raise UsageError(f"--gue_results {folder}: its runs were not, or not all, of the model in {model}")
    datasets = [dataset for dataset in summary["datasets"] if dataset["mean"] is not None]
    found = [
        EvalResult(
            task_type="text-classification",
            dataset_type="GUE" if dataset["group"] else "labelled-sequences",
            dataset_name=f"GUE {dataset['task']}" if dataset["group"] else dataset["task"],
            dataset_config=dataset["task"],
            dataset_split="test",
            metric_type=METRICS[dataset["metric"]][0],
            metric_name=f"{METRICS[dataset['metric']][1]}, mean of {len(dataset['seeds'])} fine-tuned seed(s)",
            metric_value=round(dataset["mean"] / 100, 6),
        )
        for dataset in datasets
    ]
    return found, datasets


def draw_curves(release: Path, lines: list[dict], is_pretraining: bool):
    """Pretraining's as `dnabert2.curves` draws them from the release's metrics, fine-tuning's by its two losses."""
    if is_pretraining:
        curves.draw_curves([release], release / CURVES)
        return
    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "train", {}), ("dev_loss", "dev", curves.VALIDATION)):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="steps", ylabel="loss")
    axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    write_whole(release / CURVES, picture.getvalue())


def public(values):
    """JSON's values without where things lie on this machine: of a path its last part."""
    if isinstance(values, dict):
        return {key: public(value) for key, value in values.items()}
    if isinstance(values, list):
        return [public(value) for value in values]
    is_path = isinstance(values, str) and ("/" in values or "\\" in values)
    return PurePath(values).name if is_path and (Path(values).is_absolute() or Path(values).exists()) else values


def write_results(release: Path, folder: Path, record: Record, gue_results: Path | None):
    """Lays results, metrics and curves into the release."""
    if record.results:
        write_whole(release / RESULTS_FILE, json.dumps(public(record.results), indent=2) + "\n")
        if "task" not in record.results and (folder / VALIDATION).is_file():
            write_whole(release / VALIDATION, (folder / VALIDATION).read_bytes())
    if record.metrics:
        write_whole(release / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in record.metrics))
        if any("loss" in line for line in record.metrics):
            draw_curves(release, record.metrics, "task" not in record.results)
    for name in (MARKDOWN_FILE, PICTURE_FILE) if gue_results else ():
        write_whole(release / name, (gue_results / name).read_bytes())
