"""The tables of run_gue.py, from what the runs of a folder have left; also while others still run.

    python -m dnabert2.gue_report out

Writes gue_results.json, gue_results.md and gue_results.png into that folder. A dataset's score is the mean over its
seeds; a task's the mean over its datasets, each of the same weight.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

from dnabert2 import gue_picture
from dnabert2.data_checks import checks_markdown
from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.files import write_whole
from dnabert2.gue import GROUPS, TASKS, TASKS_BY_NAME, Task
from dnabert2.metrics import MAIN_METRIC


RESULTS_FILE = "all_results.json"  # of a run, as in dnabert2.checkpoints, which would import torch: seconds
CHECKS_FILE = "data_checks.json"
JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "gue_results.json", "gue_results.md", "gue_results.png"
SHOWN = ("DNABERT-2", "DNABERT (6-mer)", "NT-2500M-multi")  # of the published scores
OF_DATA = "seed data_files dataset_name dataset_config_name problem_type".split()  # arguments that runs may differ in
NAMED = {
    "model_name_or_path": "model_files",
    "dataset_name": "data_files",
}  # names, and the fingerprints of what they name


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: remove its folder to run it again") from error


def differing(one: dict, other: dict) -> list[str]:
    """The arguments in which two runs differ. Of what has the same fingerprint in both the name does not matter."""
    changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    same = {name for name, files in NAMED.items() if files not in changed and one.get(files) is not None}
    return sorted(changed - same)


def scores_line(scores: dict) -> str:
    """As "loss 0.4321, mcc 0.5012"."""
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    return ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())


def read_runs(folder: Path) -> dict[str, list[dict]]:
    """The results of the finished runs below a folder by task, GUE's in its order and then others, by seed."""
    runs = defaultdict(list)
    for file in folder.glob(f"**/seed-*/{RESULTS_FILE}"):
        results = read_json(file)
        runs[results["task"]].append(results)
    if not runs:
        raise UsageError(f"{folder}: no finished run in it; name the --output_dir of run_gue.py")
    order = [name for name in TASKS_BY_NAME if name in runs] + sorted(runs.keys() - TASKS_BY_NAME.keys())
    return {name: sorted(runs[name], key=lambda results: results["seed"]) for name in order}


def summary_of_task(name: str, runs: list[dict]) -> dict:
    """
    One dataset over its seeds. Scores are percentages, as published; None where a run's is not defined.

    Returns:
        {"task", "group", "metric", "seeds" {seed: score}, "mean", "sd" (of the sample; None of one seed), "published"
        {model: score}, "collapsed" (seeds that predict one and the same for all rows), "train_is_from_dev",
        "recipe_changes" {name: [published, values of the runs]}, "train_rows" (of the run that has fewest),
        "published_train_rows" (None: not known), "truncated_rows" {split: rows}, "max_seq_length", "other_scores"
        {metric: mean over seeds}}
    """
    task = TASKS_BY_NAME.get(name)
    metric = task.metric if task else MAIN_METRIC[runs[0]["problem_type"]]
    scores = {run["seed"]: _percent(run["test"][metric]) for run in runs}
    known = [score for score in scores.values() if score is not None]
    others = {}
    for key, value in runs[0]["test"].items():
        values = [run["test"][key] for run in runs]
        if isinstance(value, float) and None not in values:
            others[key] = mean(values)
    return {
        "task": name,
        "group": task.group if task else None,
        "metric": metric,
        "seeds": scores,
        "mean": mean(known) if len(known) == len(runs) else None,
        "sd": stdev(known) if len(known) == len(runs) > 1 else None,
        "published": task.published if task else {},
        "collapsed": [run["seed"] for run in runs if run["test"]["collapsed"]],
        "train_is_from_dev": runs[0]["train_is_from_dev"],
        "recipe_changes": _recipe_changes(task, runs) if task else {},
        "train_rows": min(run["rows"]["train"] for run in runs),
        "published_train_rows": task.rows["train"] if task else None,
        "truncated_rows": runs[0]["truncated_rows"],
        "max_seq_length": runs[0]["max_seq_length"],
        "train_seconds": sum(run["train_seconds"] for run in runs),
        "other_scores": others,
    }


def _recipe_changes(task: Task, runs: list[dict]) -> dict[str, list]:
    """What the runs of a task of GUE did not do as the published ones: [published, ours, ...] by name."""
    changes = {}
    for name, published in asdict(task.recipe).items():
        if name == "max_train_steps" and published is None:
            continue  # follows from the epochs
        used = list(dict.fromkeys(run["recipe"][name] for run in runs))
        if name == "num_train_epochs" and published is not None and used == [None]:
            name, published, used = "steps", f"{published} epochs", [run["recipe"]["max_train_steps"] for run in runs]
        if used != [published]:
            changes[name] = [published, *dict.fromkeys(used)]
    return changes


def _percent(score: float | None) -> float | None:
    return None if score is None else 100 * score


def summary_of_tasks(datasets: list[dict], name: str, of: int) -> dict:
    """The means over some datasets of GUE, ours and the published ones over the very same."""
    known = [dataset for dataset in datasets if dataset["mean"] is not None]
    return {
        "name": name,
        "datasets": len(known),
        "of": of,
        "mean": mean(dataset["mean"] for dataset in known) if known else None,
        "published": {
            model: mean(dataset["published"][model] for dataset in known) for model in TASKS[0].published if known
        },
    }


def summarise(runs: dict[str, list[dict]]) -> dict:
    """All of a folder: {"datasets" [`summary_of_task`], "tasks" and "overall" [`summary_of_tasks`], "runs_of"}."""
    datasets = [summary_of_task(name, of_task) for name, of_task in runs.items()]
    of_gue = [dataset for dataset in datasets if dataset["group"]]
    tasks = []
    for group, title in GROUPS.items():
        of_group = [dataset for dataset in of_gue if dataset["group"] == group]
        if of_group:
            size = sum(task.group == group for task in TASKS)
            tasks.append(summary_of_tasks(of_group, f"{group} ({title})", size))
    return {
        "datasets": datasets,
        "tasks": tasks,
        "overall": summary_of_tasks(of_gue, "GUE", len(TASKS)),
        "runs_of": _settings(run for of_task in runs.values() for run in of_task),
    }


def _settings(runs) -> list[dict]:
    """The arguments that all runs should share, given ones only; more than one: the table mixes models or recipes."""
    found = []
    for run in runs:
        given = {
            key: value for key, value in run["arguments"].items() if value not in (None, "") and value is not False
        }
        settings = {key: value for key, value in given.items() if key not in OF_DATA}
        if all(differing(settings, other) for other in found):
            found.append(settings)
    return found


def _score(value: float | None, sd: float | None = None) -> str:
    return "–" if value is None else f"{value:.2f}" + ("" if sd is None else f" ± {sd:.2f}")


def _notes(dataset: dict) -> str:
    notes = []
    if collapsed := dataset["collapsed"]:
        seeds = ", ".join(map(str, collapsed))
        notes.append(f"**collapsed: one prediction for all rows** (seed {seeds})")
    if dataset["train_is_from_dev"]:
        notes.append("trained on a part of dev †")
    elif dataset["train_rows"] < (dataset["published_train_rows"] or 0):
        notes.append(f"**train has {dataset['train_rows']:,} of {dataset['published_train_rows']:,} rows**")
    if changes := dataset["recipe_changes"]:
        told = (f"{name} {' and '.join(map(str, used))}, not {before}" for name, (before, *used) in changes.items())
        notes.append(f"recipe is not the published: {'; '.join(told)}")
    if any(dataset["truncated_rows"].values()):
        cut = ", ".join(f"{rows:,} of {split}" for split, rows in dataset["truncated_rows"].items() if rows)
        notes.append(f"rows cut to {dataset['max_seq_length']} tokens: {cut}")
    return "; ".join(notes)


def markdown(summary: dict, checks: list[dict]) -> str:
    """The tables as a page; published scores only beside datasets of GUE."""
    shown = SHOWN if summary["tasks"] else ()
    lines = ["# GUE" if shown else "# Scores", ""]
    for settings in summary["runs_of"]:
        lines.append("Runs of " + ", ".join(f"{key} {value}" for key, value in settings.items()) + ".")
    if len(summary["runs_of"]) > 1:
        first, *others = summary["runs_of"]
        names = ", ".join(sorted({key for other in others for key in differing(first, other)}))
        lines.append(f"**The runs differ in more than data and seed ({names}): their means are not of one model.**")
    about = "Scores on test in percent: mean ± standard deviation over seeds."
    if shown:
        about += " Published ones are of the paper (arXiv 2306.15006), fine-tuned on the whole training data."
    lines += [
        "",
        about,
        "",
        f"| {' | '.join(['dataset', 'metric', 'seeds', 'this model', *shown, 'notes'])} |",
        "|---|---|--:|--:|" + "--:|" * len(shown) + "---|",
    ]
    for dataset in summary["datasets"]:
        published = [_score(dataset["published"].get(model)) for model in shown]
        metric = gue_picture.NAMES.get(dataset["metric"], dataset["metric"])
        cells = [dataset["task"].replace("|", r"\|"), metric, str(len(dataset["seeds"]))]
        cells += [_score(dataset["mean"], dataset["sd"]), *published, _notes(dataset)]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    overall = summary["overall"]
    if overall["datasets"]:
        lines += ["", f"| task | datasets | this model | {' | '.join(SHOWN)} |", "|---|--:|--:|" + "--:|" * len(SHOWN)]
        rows = [(task["name"], task) for task in summary["tasks"]]
        is_whole = overall["datasets"] == overall["of"]
        rows.append((f"**mean over {'all ' if is_whole else 'the '}{overall['datasets']}**", overall))
        for name, row in rows:
            published = " | ".join(_score(row["published"][model]) for model in SHOWN)
            lines.append(f"| {name} | {row['datasets']} of {row['of']} | {_score(row['mean'])} | {published} |")
        lines += ["", "Published means are over the same datasets as this model's."]
        if not is_whole:
            lines.append(f"**{overall['of'] - overall['datasets']} of the {overall['of']} datasets are not in it.**")
    if any(dataset["train_is_from_dev"] for dataset in summary["datasets"]):
        lines += ["", "† Without a train file, 90 % of dev are train and 10 % dev: far less than the published had."]
    lines += ["", f"![scores]({PICTURE_FILE})"]
    if checks:
        lines += ["", "## Data", "", checks_markdown(checks)]
    return "\n".join(lines).rstrip() + "\n"


def write_report(folder: Path) -> dict:
    """Writes the three files into the folder and returns the summary. Raises UsageError if no run is finished."""
    runs = read_runs(folder)
    summary = summarise(runs)
    files = [folder / name / CHECKS_FILE for name in runs]
    checks = [read_json(file) for file in files if file.is_file()]
    write_whole(folder / JSON_FILE, json.dumps(summary, indent=2) + "\n")
    write_whole(folder / MARKDOWN_FILE, markdown(summary, checks))
    write_whole(folder / PICTURE_FILE, gue_picture.draw(summary))
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--output_dir of run_gue.py")
    add_debug(parser)
    folder = parser.parse_args().folder
    write_report(folder)
    print(folder / MARKDOWN_FILE)


if __name__ == "__main__":
    run_script(main)
