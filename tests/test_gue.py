"""The table of GUE's tasks is that of the collected sources, and a task is found by every name it has.

pytest tests/test_gue.py
"""

import csv
from statistics import mean

import pytest

from dnabert2.errors import UsageError
from dnabert2.gue import GROUPS, MODELS, TASKS, select_tasks


def rows_of(file):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def number_or_none(text):
    return None if text == "?" else int(text)


def dataset_name(task):  # as the sources name it
    folder, _, name = task.name.partition("/")
    return f"{folder}_{name}" if folder in ("tf", "mouse") else name


def test_rows_classes_species_and_metric_are_those_of_the_released_files(reference):
    stats = {row["path_in_zip"].removeprefix("GUE/"): row for row in rows_of(reference / "gue_stats.csv")}
    assert set(stats) - {"GUE+"} == {task.name for task in TASKS}
    for task in TASKS:
        row = stats[task.name]
        assert task.rows == {split: number_or_none(row[f"n_{split}"]) for split in ("train", "dev", "test")}
        assert (task.num_labels, task.species) == (int(row["n_classes"]), row["species"])
        assert task.metric == {"MCC": "mcc", "F1 (macro in train.py)": "macro_f1"}[row["metric"]]
        assert row["task"].startswith(task.group)


def test_recipes_are_those_that_dnabert2_was_fine_tuned_by(reference):
    rows = {r["dataset"]: r for r in rows_of(reference / "gue_hparams.csv") if r["model"] == "DNABERT-2"}
    assert set(rows) == {dataset_name(task) for task in TASKS}
    for task in TASKS:
        row, recipe = rows[dataset_name(task)], task.recipe
        has_steps = row["max_steps"] != "-1"  # which overrule epochs
        assert recipe.num_train_epochs == (None if has_steps else int(row["epochs"]))
        assert recipe.max_train_steps == (int(row["max_steps"]) if has_steps else None)
        assert (recipe.num_warmup_steps, recipe.eval_steps) == (int(row["warmup_steps"]), int(row["eval_steps"]))
        assert recipe.total_train_batch_size == int(row["effective_batch"])
        assert (recipe.learning_rate, recipe.weight_decay) == (float(row["lr"]), float(row["weight_decay"]))


def test_published_scores_are_those_of_the_source(reference):
    scores = {(row["model"], row["dataset"]): row["value"] for row in rows_of(reference / "gue_published.csv")}
    for task in TASKS:
        assert task.published == {model: float(scores[model, dataset_name(task)]) for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_the_means_of_the_published_scores_are_the_published_means(reference, model):
    [row] = [row for row in rows_of(reference / "gue_models.csv") if row["model"] == model]
    scores = {task.name: task.published[model] for task in TASKS}
    assert f"{mean(scores.values()):.2f}" == f"{float(row['avg28_computed']):.2f}"
    means = {
        row["task"]: row["value"]
        for row in rows_of(reference / "gue_published.csv")
        if row["model"] == model and row["dataset"].startswith("MEAN")
    }
    for group in set(GROUPS) & set(means):
        assert mean(scores[task.name] for task in select_tasks([group])) == pytest.approx(
            float(means[group]), abs=0.006
        )


@pytest.mark.parametrize(
    ("names", "count"),
    [(["all"], 28), (["EMP"], 10), (["prom"], 6), (["PD"], 3), (["tf", "TF-H"], 5), (["splice", "virus/covid"], 2)],
)
def test_tasks_are_selected_by_name_folder_and_group_each_once(names, count):
    assert len(select_tasks(names)) == count


def test_selected_tasks_have_the_order_of_the_table():
    assert [task.name for task in select_tasks(["tf/3", "EMP/H4", "tf/0"])] == ["EMP/H4", "tf/0", "tf/3"]


def test_an_unknown_task_is_refused_with_the_names_near_to_it():
    with pytest.raises(UsageError, match=r"no task or group 'EMP/H3K9'; near to it: EMP/H3K9ac"):
        select_tasks(["EMP/H3K9"])
    with pytest.raises(UsageError, match="no task is named"):
        select_tasks([])
