"""The tables of GUE: means that are what they say, nothing hidden, and a page while runs are missing.

pytest tests/test_gue_report.py
"""

import json
from dataclasses import asdict
from statistics import mean

import pytest

from dnabert2 import gue_report
from dnabert2.errors import UsageError
from dnabert2.gue import TASKS, TASKS_BY_NAME, Recipe
from dnabert2.gue_report import markdown, read_runs, summarise, write_report


def write_run(folder, name, seed, score, **values):
    test = {"loss": 0.5, "accuracy": 0.9, "mcc": score, "macro_f1": score, "auroc": None, "collapsed": False}
    task = TASKS_BY_NAME.get(name)
    rows = task.rows["train"] if task else None
    results = {
        "task": name,
        "seed": seed,
        "problem_type": "single_label_classification",
        "test": test | values.pop("test", {}),
        "train_is_from_dev": False,
        "truncated_rows": {"train": 0, "dev": 0, "test": 0},
        "max_seq_length": 64,
        "train_seconds": 1.0,
        "rows": {"train": rows or 100},
        "recipe": asdict(task.recipe if task else Recipe()) | values.pop("recipe", {}),
        "arguments": {"model_name_or_path": "mini", "use_lora": False} | values.pop("arguments", {}),
    } | values
    run = folder / name / f"seed-{seed}"
    run.mkdir(parents=True)
    (run / "all_results.json").write_text(json.dumps(results))


def test_a_row_is_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, score in ((44, 0.8), (42, 0.6), (43, 0.7)):
        write_run(tmp_path, "EMP/H3", seed, score)
    summary = summarise(read_runs(tmp_path))
    row = summary["datasets"][0]
    assert list(row["seeds"]) == [42, 43, 44]
    assert row["mean"] == pytest.approx(70) and row["sd"] == pytest.approx(10)
    assert "| EMP/H3 | MCC | 3 | 70.00 ± 10.00 | 78.27 | 73.10 | 78.77 | |" in markdown(summary, [])


def test_steps_that_are_the_published_ones_are_no_change(tmp_path):
    write_run(tmp_path, "mouse/0", 42, 0.5)  # of steps, not of epochs
    write_run(tmp_path, "tf/0", 42, 0.5, recipe={"num_train_epochs": None, "max_train_steps": 10})
    changes = {row["task"]: row["recipe_changes"] for row in summarise(read_runs(tmp_path))["datasets"]}
    assert changes == {"mouse/0": {}, "tf/0": {"steps": ["3 epochs", 10]}}


def test_a_single_seed_has_no_deviation(tmp_path):
    write_run(tmp_path, "virus/covid", 42, 0.5)
    assert "| virus/covid | macro-F1 | 1 | 50.00 | 71.02 | 55.50 | 73.04 | |" in markdown(
        summarise(read_runs(tmp_path)), []
    )


def test_means_are_over_datasets_and_beside_the_published_ones_of_the_same(tmp_path):
    present = [task for task in TASKS if task.name in ("tf/0", "tf/1", "splice/reconstructed")]
    for task, score in zip(present, (0.6, 0.7, 0.2), strict=True):
        for seed in (42,) if task.name == "tf/0" else (42, 43):
            write_run(tmp_path, task.name, seed, score)
    summary = write_report(tmp_path)
    tasks = {row["name"].split()[0]: row for row in summary["tasks"]}
    assert tasks["TF-H"]["mean"] == pytest.approx(65) and (tasks["TF-H"]["datasets"], tasks["TF-H"]["of"]) == (2, 5)
    assert summary["overall"]["mean"] == pytest.approx(50)
    assert summary["overall"]["published"]["DNABERT-2"] == pytest.approx((71.99 + 76.06 + 84.99) / 3)
    page = (tmp_path / "gue_results.md").read_text()
    assert "**mean over the 3** | 3 of 28 | 50.00" in page and "**25 of the 28 datasets are not in it.**" in page


def test_all_of_gue(tmp_path):
    for task in TASKS:
        write_run(tmp_path, task.name, 42, task.published["DNABERT-2"] / 100)
    summary = write_report(tmp_path)
    assert [row["task"] for row in summary["datasets"]] == [task.name for task in TASKS]
    assert summary["overall"]["mean"] == pytest.approx(mean(task.published["DNABERT-2"] for task in TASKS))
    assert len(summary["tasks"]) == 7
    assert summary["overall"]["mean"] != pytest.approx(mean(row["mean"] for row in summary["tasks"]))
    page = (tmp_path / "gue_results.md").read_text()
    assert "**mean over all 28** | 28 of 28 | 66.8" in page and "are not in it" not in page


def test_what_a_score_does_not_show_is_in_the_notes(tmp_path):
    write_run(tmp_path, "tf/0", 42, 0.6)
    write_run(tmp_path, "tf/0", 43, 0.0, test={"collapsed": True})
    write_run(tmp_path, "mouse/1", 42, 0.6, train_is_from_dev=True)
    write_run(tmp_path, "mouse/3", 42, 0.6, truncated_rows={"train": 1200, "dev": 0, "test": 3})
    page = markdown(summarise(read_runs(tmp_path)), [])
    assert "**collapsed: one prediction for all rows** (seed 43)" in page
    assert "trained on a part of dev †" in page and "† Without a train file" in page
    assert "rows cut to 64 tokens: 1,200 of train, 3 of test" in page


def test_runs_of_several_models_are_not_passed_for_one(tmp_path):
    write_run(tmp_path, "tf/0", 42, 0.6)
    assert "differ in more" not in markdown(summarise(read_runs(tmp_path)), [])
    write_run(tmp_path, "tf/1", 42, 0.6, arguments={"use_lora": True})
    page = markdown(summarise(read_runs(tmp_path)), [])
    assert "differ in more than data and seed (use_lora)" in page and "use_lora True" in page


def test_all_arguments_but_those_of_data_tell_runs_apart_and_models_are_known_by_their_files(tmp_path):
    common = {"model_files": "abc", "lora_r": None}
    write_run(tmp_path, "tf/0", 42, 0.6, arguments=common | {"data_files": "1"})
    write_run(tmp_path, "tf/1", 43, 0.6, arguments=common | {"data_files": "2", "model_name_or_path": "/elsewhere"})
    assert "differ in more" not in markdown(summarise(read_runs(tmp_path)), [])
    write_run(tmp_path, "tf/2", 42, 0.6, arguments=common | {"model_files": "def", "learning_rate": 0.0})
    page = markdown(summarise(read_runs(tmp_path)), [])
    assert "data and seed (learning_rate, model_files)" in page and "learning_rate 0.0" in page


def test_other_recipes_and_fewer_rows_than_the_published_are_marked(tmp_path):
    write_run(tmp_path, "EMP/H3", 42, 0.6, recipe={"learning_rate": 1e-3, "eval_steps": 7}, rows={"train": 99})
    write_run(tmp_path, "EMP/H4", 42, 0.6, recipe={"num_train_epochs": None, "max_train_steps": 5})
    page = markdown(summarise(read_runs(tmp_path)), [])
    assert "recipe is not the published: eval_steps 7, not 200; learning_rate 0.001, not 3e-05" in page
    assert f"train has 99 of {TASKS_BY_NAME['EMP/H3'].rows['train']:,} rows" in page
    assert "recipe is not the published: steps 5, not 3 epochs" in page


def test_tasks_of_the_users_have_no_published_scores_and_no_part_in_gues_mean(tmp_path):
    write_run(tmp_path, "mine", 42, 0.6)
    write_run(tmp_path, "trees", 42, 0, problem_type="regression", test={"spearman": None, "pearson": None})
    summary = write_report(tmp_path)
    page = (tmp_path / "gue_results.md").read_text()
    assert "| mine | MCC | 1 | 60.00 | |" in page and "| trees | Spearman | 1 | – | |" in page
    assert summary["overall"]["datasets"] == 0 and "mean over" not in page and "ublished" not in page
    write_run(tmp_path, "EMP/H3", 42, 0.7)
    write_report(tmp_path)
    assert "| mine | MCC | 1 | 60.00 | – | – | – | |" in (tmp_path / "gue_results.md").read_text()


def test_broken_and_missing_results_are_told(tmp_path):
    with pytest.raises(UsageError, match="no finished run in it"):
        read_runs(tmp_path)
    write_run(tmp_path, "tf/0", 42, 0.6)
    (tmp_path / "tf/0/seed-42/all_results.json").write_text("{")
    with pytest.raises(UsageError, match=r"seed-42/all_results\.json is no JSON"):
        read_runs(tmp_path)


def test_the_page_is_made_again_on_demand(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, "tf/0", 42, 0.6)
    monkeypatch.setattr("sys.argv", ["gue_report", str(tmp_path)])
    gue_report.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "gue_results.md")
    assert {path.name for path in tmp_path.glob("gue_results.*")} == {
        f"gue_results.{e}" for e in ("json", "md", "png")
    }
