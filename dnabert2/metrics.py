"""The scores of a whole split, by the `evaluate` module in `sequence_metrics/`.

python -c 'from dnabert2.metrics import score; print(score("regression", [0.5, 1.5, 1.0], [0.0, 2.0, 1.0]))'
"""

import tempfile
import uuid
from pathlib import Path

import evaluate
import numpy as np

from dnabert2.errors import UsageError


MODULE = Path(__file__).parent / "sequence_metrics"

# The published scores are of mcc and macro_f1; the others are what papers of such tasks give.
MAIN_METRIC = {"single_label_classification": "mcc", "multi_label_classification": "auroc", "regression": "spearman"}


def score(problem_type: str, predictions: np.ndarray, references: np.ndarray) -> dict:
    """
    All scores of a split, from 0 to 1 (correlations and MCC from -1); call it once, with all rows.

    Args:
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        predictions: probabilities [rows, classes], of multi-label [rows, labels]; of a regression values [rows].
        references: labels as of `dnabert2.labelled.Split`.

    Returns:
        What `sequence_metrics` says; always "collapsed": whether one and the same is predicted for all rows.

    Raises:
        UsageError: if predictions are not finite: the weights broke.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    if not np.isfinite(predictions).all():
        raise UsageError("the model predicts what is no finite number: its weights broke; lower --learning_rate")
    # By default evaluate keeps rows in a file of one name for all runs of a user: here in memory, and its empty folder
    # goes as well. The id is for a copy of this call with files.
    with tempfile.TemporaryDirectory(prefix="dnabert2-metrics-") as folder:
        metric = evaluate.load(
            str(MODULE), problem_type, keep_in_memory=True, cache_dir=folder, experiment_id=uuid.uuid4().hex
        )
        return metric.compute(predictions=predictions, references=np.asarray(references))
