"""The loss of every head: its formula, its labels, and its scaling by `num_items_in_batch`."""

import pytest
import torch
from models import TINY, build, four_masks, gradients, padded_batch, random_ids, worst
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification


class TestMaskedLMLoss:
    def test_is_the_mean_over_labels(self):
        batch, model = padded_batch(), build()
        outputs = model(**batch)
        labelled = batch["labels"] != -100
        expected = nn.functional.cross_entropy(outputs.logits[labelled], batch["labels"][labelled])
        assert worst(outputs.loss, expected) < 1e-6

    def test_is_the_sum_over_num_items_in_batch(self):
        batch, model = padded_batch(), build()
        number = (batch["labels"] != -100).sum()
        for num_items in (3 * number, int(3 * number)):
            assert worst(3 * model(**batch, num_items_in_batch=num_items).loss, model(**batch).loss) < 1e-6

    def test_of_no_label_at_all_is_nan_as_in_all_of_transformers(self):
        ids = random_ids(2, 9)
        assert build()(ids, labels=torch.full_like(ids, -100)).loss.isnan()

    def test_logits_are_real_at_every_position(self):
        batch, model = padded_batch(), build()
        labels = batch.pop("labels")
        assert torch.equal(model(**batch).logits, model(**batch, labels=labels).logits)

    @pytest.mark.parametrize("shape", [(4, 24, 1), (4, 23), (96,), (4, 24, 64)])
    def test_labels_of_another_shape_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"labels must be \(4, 24\), are "):
            build()(random_ids(4, 24), labels=torch.zeros(shape, dtype=torch.long))


class TestPredictionPositions:
    @pytest.mark.parametrize("filled", [0, 5])
    def test_give_the_loss_and_gradients_of_all_logits(self, filled):
        batch, dense, sparse = padded_batch(), build(), build()
        predictions = at_labels_alone(batch, filled)
        expected, outputs = dense(**batch), sparse(**predictions)
        assert outputs.logits.shape == (len(predictions["labels"]), TINY["vocab_size"])
        assert worst(outputs.logits, expected.logits.flatten(0, 1)[predictions["prediction_positions"]]) < 1e-5
        assert worst(outputs.loss, expected.loss) < 1e-6
        expected.loss.backward()
        outputs.loss.backward()
        for name, gradient in gradients(dense).items():
            assert worst(gradients(sparse)[name], gradient) < 1e-5, name

    def test_scale_by_num_items_in_batch(self):
        predictions = at_labels_alone(padded_batch(), 5)
        number = (predictions["labels"] != -100).sum()
        scaled = build()(**predictions, num_items_in_batch=3 * number)
        assert worst(3 * scaled.loss, build()(**predictions).loss) < 1e-6

    def test_need_no_labels(self):
        positions = torch.tensor([7, 0, 7, 3])  # in any order, and more than once
        outputs = build()(random_ids(2, 4), prediction_positions=positions)
        assert outputs.loss is None
        assert worst(outputs.logits, build()(random_ids(2, 4)).logits.flatten(0, 1)[positions]) < 1e-6

    def test_with_labels_of_all_tokens_are_refused(self):
        batch = padded_batch()
        with pytest.raises(ValueError, match=r"labels must be \(3,\), are \(4, 24\)"):
            build()(**batch, prediction_positions=torch.arange(3))


def at_labels_alone(batch, filled):
    """The batch with its labels by position, filled up with `filled` positions 0 of no label."""
    labels = batch["labels"].flatten()
    positions = nn.functional.pad((labels != -100).nonzero()[:, 0], (0, filled))
    labels = nn.functional.pad(labels[labels != -100], (0, filled), value=-100)
    return batch | {"prediction_positions": positions, "labels": labels}


def binary_cross_entropy(logits, labels):
    return -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()


SEQUENCE_PROBLEMS = {
    # name: (problem_type, number of labels, labels of four rows, formula)
    "single label": (
        "single_label_classification",
        3,
        torch.tensor([0, 2, 1, 2]),
        lambda logits, labels: -logits.log_softmax(-1)[torch.arange(4), labels].mean(),
    ),
    "several labels": (
        "multi_label_classification",
        3,
        torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).float(),
        binary_cross_entropy,
    ),
    "regression": (
        "regression",
        1,
        torch.tensor([0.5, -2.0, 3.0, 0.0]),
        lambda logits, labels: ((logits[:, 0] - labels) ** 2).mean(),
    ),
}


@pytest.mark.parametrize("inferred", [False, True], ids=["named", "inferred"])
@pytest.mark.parametrize("problem", SEQUENCE_PROBLEMS)
class TestSequenceClassificationLoss:
    def outputs(self, problem, inferred, **kwargs):
        problem_type, num_labels, labels, _ = SEQUENCE_PROBLEMS[problem]
        model = build(
            AutoModelForSequenceClassification,
            num_labels=num_labels,
            problem_type=None if inferred else problem_type,
        )
        outputs = model(random_ids(4, 24), four_masks(24), labels=labels, **kwargs)
        assert model.config.problem_type == problem_type
        return outputs, labels

    def test_is_the_formula(self, problem, inferred):
        outputs, labels = self.outputs(problem, inferred)
        assert outputs.logits.shape == (4, SEQUENCE_PROBLEMS[problem][1])
        assert worst(outputs.loss, SEQUENCE_PROBLEMS[problem][3](outputs.logits, labels)) < 1e-6

    def test_is_the_sum_over_num_items_in_batch(self, problem, inferred):
        mean, labels = self.outputs(problem, inferred)
        scaled, _ = self.outputs(problem, inferred, num_items_in_batch=torch.tensor(3 * labels.numel()))
        assert worst(3 * scaled.loss, mean.loss) < 1e-6


def test_regression_with_several_targets():
    model = build(AutoModelForSequenceClassification, num_labels=2, problem_type="regression")
    labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    outputs = model(random_ids(4, 24), labels=labels)
    assert worst(outputs.loss, ((outputs.logits - labels) ** 2).mean()) < 1e-6


def test_token_classification_loss_is_the_mean_over_labels():
    model = build(AutoModelForTokenClassification, num_labels=3)
    batch = padded_batch()
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)
    outputs = model(**batch)
    assert outputs.logits.shape == (4, 24, 3)
    labelled = batch["labels"] != -100
    expected = nn.functional.cross_entropy(outputs.logits[labelled], batch["labels"][labelled])
    assert worst(outputs.loss, expected) < 1e-6
    assert worst(2 * model(**batch, num_items_in_batch=2 * labelled.sum()).loss, expected) < 1e-6
