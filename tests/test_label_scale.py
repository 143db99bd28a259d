"""Regression: labels of any unit are learned, and predictions and scores are in that unit.

pytest tests/test_label_scale.py
"""

import numpy as np
import pytest
import torch
from gue_runs import command, predictions, results, run_here, save_base, write_task
from transformers import PretrainedConfig

from dnabert2.label_scale import LabelScale, read_scale, scale_of_task, write_scale
from dnabert2.labelled import REGRESSION, SINGLE_LABEL, Split, TaskData
from dnabert2.metrics import score


def test_a_scale_is_of_train_and_undone_by_what_the_configuration_holds():
    train = Split("train.csv", ["1", "2"], ["A", "C"], None, np.array([10, 30], dtype=np.float32))
    scale = scale_of_task(TaskData("mine", REGRESSION, ["label"], {"train": train}))
    assert scale == LabelScale(20, 10) and scale_of_task(TaskData("a", SINGLE_LABEL, ["0"], {})) == LabelScale()
    standardised = scale.standardise(torch.from_numpy(train.labels))
    assert standardised.tolist() == [-1, 1]
    config = PretrainedConfig()
    assert read_scale(config) == LabelScale()
    write_scale(config, scale)
    assert read_scale(PretrainedConfig.from_dict(config.to_dict())).restore(standardised.numpy()).tolist() == [10, 30]


def test_nearly_constant_predictions_are_collapsed():
    references = [1000.0, 2000.0, 3000.0]
    assert score(REGRESSION, [2000.0, 2000.1, 2000.2], references)["collapsed"]
    assert not score(REGRESSION, [1900.0, 2000.0, 2100.0], references)["collapsed"]


def test_runs_and_predict_mode_are_in_the_unit_of_the_labels(tmp_path, monkeypatch):
    task = write_task(tmp_path / "mine", label=lambda kind: 5350 if kind else 4650)
    options = {"model_name_or_path": save_base(tmp_path / "base"), "data_dir": task, "output_dir": tmp_path / "out"}
    run_here(monkeypatch, *command(**options, problem_type=REGRESSION, save_model=True))
    folder = tmp_path / "out/mine/seed-1"
    test, rows = results(folder)["test"], predictions(folder)
    assert test["spearman"] > 0.5 and test["r2"] > 0.3 and not test["collapsed"] and test["loss"] < 1
    assert test["mse"] == pytest.approx(350**2 * test["loss"], rel=1e-3)
    assert rows[0].keys() == {"row", "label", "predicted"}
    predicting = ["--model_name_or_path", str(folder), "--predict_file", str(task / "test.csv"), "--output_dir"]
    run_here(monkeypatch, *predicting, str(tmp_path / "new"))
    again = [float(row["predicted"]) for row in predictions(tmp_path / "new")]
    assert again == pytest.approx([float(row["predicted"]) for row in rows], abs=0.1)
    with pytest.raises(SystemExit, match="holds a finished run"):
        run_here(monkeypatch, *predicting, str(folder))
