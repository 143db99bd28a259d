"""The scale of a regression's labels: a fresh head gives values near 0, and labels can be of any unit."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PretrainedConfig

from dnabert2.labelled import REGRESSION, TaskData


@dataclass(frozen=True)
class LabelScale:
    """A model's output is (label - mean) / std. Kept in its configuration as `label_mean` and `label_std`."""

    mean: float = 0.0
    std: float = 1.0

    def standardise(self, labels: torch.Tensor) -> torch.Tensor:
        return labels if self == UNSCALED else (labels - self.mean) / self.std

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Outputs in the unit of the labels."""
        return values * self.std + self.mean


UNSCALED = LabelScale()


def scale_of_task(data: TaskData) -> LabelScale:
    """Of the labels of train; nothing is scaled but a regression's."""
    if data.problem_type != REGRESSION:
        return UNSCALED
    labels = data.splits["train"].labels.astype(np.float64)
    return LabelScale(float(labels.mean()), float(labels.std()) or 1.0)


def write_scale(config: PretrainedConfig, scale: LabelScale):
    config.label_mean, config.label_std = scale.mean, scale.std


def read_scale(config: PretrainedConfig) -> LabelScale:
    """What a configuration holds; models from elsewhere have none, and predict in the unit of their labels."""
    return LabelScale(getattr(config, "label_mean", 0.0), getattr(config, "label_std", 1.0))
