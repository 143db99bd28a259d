"""The scores of a split are scikit-learn's and scipy's, are None where there is none, and leave no file behind.

pytest tests/test_metrics.py
"""

import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics

from dnabert2.errors import UsageError
from dnabert2.metrics import score


SHARES = st.integers(0, 64).map(lambda share: share / 64)  # without rounding, with ties
VALUES = st.floats(-1e3, 1e3, width=32)
FEW = settings(max_examples=25, deadline=None)


def sizes(low, high):
    return st.tuples(st.integers(2, 30), st.integers(low, high))


@st.composite
def classifications(draw):
    rows, classes = draw(sizes(2, 4))
    logits = draw(arrays(np.float64, (rows, classes), elements=st.integers(-4, 4).map(float)))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's of one class, in both
@FEW
@given(classifications())
def test_single_label_scores_are_those_of_scikit_learn(case):
    probabilities, labels = case
    classes = probabilities.shape[1]
    found = score("single_label_classification", probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert found["mcc"] == metrics.matthews_corrcoef(labels, predicted)
    assert found["macro_f1"] == metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    if len(set(labels)) < classes:
        assert found["auroc"] is None
    elif classes == 2:
        assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities[:, 1]))
    else:
        assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert found["collapsed"] == (len(set(predicted)) == 1)


@st.composite
def multi_label_classifications(draw):
    shape = draw(sizes(1, 4))
    return draw(arrays(np.float64, shape, elements=SHARES)), draw(
        arrays(np.float32, shape, elements=st.sampled_from([0, 1]))
    )


@FEW
@given(multi_label_classifications())
def test_multi_label_scores_are_those_of_scikit_learn(case):
    probabilities, labels = case
    found = score("multi_label_classification", probabilities, labels)
    predicted = probabilities > 0.5
    if labels.shape[1] > 1:
        for average in ("micro", "macro"):
            expected = metrics.f1_score(labels, predicted, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(expected)
    for name, function in (("auroc", metrics.roc_auc_score), ("average_precision", metrics.average_precision_score)):
        both = [len(set(column)) == 2 for column in labels.T]
        known = [function(labels[:, i], probabilities[:, i]) if has else None for i, has in enumerate(both)]
        assert found[f"{name}_per_label"] == known
        assert found[name] == (pytest.approx(np.mean([v for v in known if v is not None])) if any(both) else None)


@st.composite
def regressions(draw):
    rows, _ = draw(sizes(1, 1))
    return draw(arrays(np.float64, rows, elements=VALUES)), draw(arrays(np.float32, rows, elements=VALUES))


@FEW
@given(regressions())
def test_regression_scores_are_those_of_scipy_and_scikit_learn(case):
    predictions, values = case
    found = score("regression", predictions, values)
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(values.astype(np.float64), predictions))
    if min(np.ptp(predictions), np.ptp(values)) == 0:
        assert found["spearman"] is found["pearson"] is None
    else:
        assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, values).statistic)
        with warnings.catch_warnings(action="ignore"):
            expected = stats.pearsonr(predictions, values.astype(np.float64)).statistic
        assert found["pearson"] == pytest.approx(expected, nan_ok=True) or not np.isfinite(expected)
    if np.ptp(values) == 0:
        assert found["r2"] is None
    else:
        assert found["r2"] == pytest.approx(metrics.r2_score(values.astype(np.float64), predictions))


def test_one_predicted_class_is_told_as_a_collapse():
    found = score("single_label_classification", [[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], [0, 1, 0])
    assert (found["mcc"], found["collapsed"], found["auroc"]) == (0, True, 0)
    assert score("regression", [1.0, 1.0], [0.0, 1.0])["collapsed"]
    assert score("multi_label_classification", [[0.1, 0.9], [0.2, 0.8]], [[0, 1], [1, 1]])["collapsed"]
    assert not score("single_label_classification", [[0.6, 0.4], [0.1, 0.9]], [0, 1])["collapsed"]


def test_predictions_that_are_no_probabilities_are_refused():
    with pytest.raises(UsageError, match="no finite number"):
        score("single_label_classification", [[np.nan, 0.5]], [0])
    with pytest.raises(ValueError, match="probabilities"):
        score("multi_label_classification", [[3.0, -1.0]], [[1, 0]])


def test_runs_side_by_side_do_not_meet_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = np.random.default_rng(0).random(1000)

    def mean_squared_errors(shift):
        return [score("regression", values, values + shift)["mse"] for _ in range(5)]

    with ThreadPoolExecutor(4) as runs:
        for shift, found in zip(range(4), runs.map(mean_squared_errors, range(4)), strict=True):
            assert found == pytest.approx([shift**2] * 5)
    assert list(tmp_path.iterdir()) == []
    assert not Path(evaluate.config.HF_METRICS_CACHE).exists()
