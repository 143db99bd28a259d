"""An `evaluate` metric of whole splits, loaded by its folder's path without a network.

    evaluate.load("dnabert2/sequence_metrics", "single_label_classification", keep_in_memory=True)

evaluate copies this file alone and scans its imports: it imports no other of this package, and one a line.
"""

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics


_DESCRIPTION = "Scores of sequence classification and regression, computed once over a whole split."

_KWARGS_DESCRIPTION = """
Args:
    predictions: single_label_classification: probabilities [rows, classes];
        multi_label_classification: probabilities [rows, labels]; regression: values [rows]
    references: indices of classes [rows]; 0 and 1 [rows, labels]; values [rows]
Returns (None for what is not defined, as a correlation with a constant):
    single_label_classification: accuracy, mcc, macro_f1, auroc (of two classes, of the second; of more, the mean over
        one class against the rest; None if a class has no row), collapsed (one class is predicted for all rows)
    multi_label_classification: micro_f1 and macro_f1 at 0.5, auroc and average_precision (means over the labels that
        have any), auroc_per_label, average_precision_per_label, collapsed (the same labels for all rows)
    regression: spearman, pearson, r2, mse, collapsed (they vary by less than a thousandth of what
        references do)
"""


def _defined(value):
    return float(value) if np.isfinite(value) else None


def _ranking(score, references, probabilities):
    """`score` of one label, or None where its rows are all positive or all negative."""
    return float(score(references, probabilities)) if len(np.unique(references)) == 2 else None


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def single_label_classification(predictions, references):
    predicted = predictions.argmax(axis=1)
    classes = predictions.shape[1]
    if not ((0 <= references) & (references < classes)).all():
        raise ValueError("references are indices of the columns of predictions, but one is out of range")
    ranked = range(classes) if classes > 2 else [1]
    aurocs = [_ranking(metrics.roc_auc_score, references == label, predictions[:, label]) for label in ranked]
    return {
        "accuracy": float(metrics.accuracy_score(references, predicted)),
        "mcc": float(metrics.matthews_corrcoef(references, predicted)),
        "macro_f1": float(metrics.f1_score(references, predicted, average="macro", zero_division=0)),
        "auroc": None if None in aurocs else _mean(aurocs),
        "collapsed": bool((predicted == predicted[0]).all()),
    }


def multi_label_classification(predictions, references):
    predicted = predictions > 0.5
    labels = range(predictions.shape[1])
    aurocs = [_ranking(metrics.roc_auc_score, references[:, i], predictions[:, i]) for i in labels]
    precisions = [_ranking(metrics.average_precision_score, references[:, i], predictions[:, i]) for i in labels]
    return {
        # a single column would be taken for a problem of two classes
        "micro_f1": float(metrics.f1_score(references.ravel(), predicted.ravel(), zero_division=0)),
        "macro_f1": float(
            np.mean([metrics.f1_score(references[:, i], predicted[:, i], zero_division=0) for i in labels])
        ),
        "auroc": _mean(aurocs),
        "average_precision": _mean(precisions),
        "auroc_per_label": aurocs,
        "average_precision_per_label": precisions,
        "collapsed": bool((predicted == predicted[0]).all()),
    }


def regression(predictions, references):
    can_correlate = min(np.ptp(predictions), np.ptp(references)) > 0  # not of constants, nor of a single row
    return {
        "spearman": _defined(stats.spearmanr(predictions, references).statistic) if can_correlate else None,
        "pearson": _defined(stats.pearsonr(predictions, references).statistic) if can_correlate else None,
        "r2": float(metrics.r2_score(references, predictions)) if np.ptp(references) > 0 else None,
        "mse": float(metrics.mean_squared_error(references, predictions)),
        "collapsed": bool(np.std(predictions) <= 1e-3 * np.std(references)),
    }


SCORES = {
    "single_label_classification": single_label_classification,
    "multi_label_classification": multi_label_classification,
    "regression": regression,
}


class SequenceMetrics(evaluate.Metric):
    def _info(self):
        if self.config_name not in SCORES:
            raise ValueError(f"name one of {', '.join(SCORES)} as the configuration, not {self.config_name!r}")
        number, row = datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"))
        features = {
            "single_label_classification": {"predictions": row, "references": datasets.Value("int64")},
            "multi_label_classification": {"predictions": row, "references": row},
            "regression": {"predictions": number, "references": number},
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features[self.config_name]),
        )

    def _compute(self, predictions, references):
        predictions, references = np.array(predictions), np.array(references)  # lists, all digits kept
        if not np.isfinite(predictions).all():
            raise ValueError("predictions are not all finite")
        if self.config_name != "regression" and not ((0 <= predictions) & (predictions <= 1)).all():
            raise ValueError("predictions are probabilities, but one is not from 0 to 1")
        return SCORES[self.config_name](predictions, references)
