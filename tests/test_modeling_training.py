"""Training: gradient checkpointing, dropout, compilation, and `transformers.Trainer`."""

import math

import pytest
import torch
from models import (
    AUTO_CLASSES,
    BACK_ENDS,
    TINY,
    assert_equal_tensors,
    build,
    encoder,
    gradients,
    load,
    padded_batch,
    random_ids,
    worst,
)
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", BACK_ENDS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(attention, dropout, use_reentrant):
    losses, all_gradients = [], []
    for checkpointing in (False, True):
        model = build(attention=attention, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert all(layer.gradient_checkpointing for layer in encoder(model).layer)
        torch.manual_seed(5)
        loss = model(**padded_batch()).loss
        loss.backward()
        losses.append(loss)
        all_gradients.append(gradients(model))
    assert torch.equal(*losses)
    for name, gradient in all_gradients[0].items():
        assert worst(all_gradients[1][name], gradient) < 1e-6, name


class TestDropout:
    @pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_each_rate_acts_in_training_alone(self, attention, rate):
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model, ids = build(AutoModel, attention, **off | {rate: 0.5}), random_ids(2, 9)
        assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
        model.train()
        assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)

    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_without_a_rate_training_equals_evaluation(self, attention):
        model, ids = build(AutoModel, attention, hidden_dropout_prob=0.0), random_ids(2, 9)
        assert torch.equal(model(ids).last_hidden_state, model.train()(ids).last_hidden_state)


@pytest.mark.parametrize("auto_class", AUTO_CLASSES[2:])
def test_a_classifier_has_its_own_dropout_rate(auto_class):
    assert build(auto_class, hidden_dropout_prob=0.25).dropout.p == 0.25
    assert build(auto_class, hidden_dropout_prob=0.25, classifier_dropout=0.0).dropout.p == 0.0


@pytest.mark.parametrize("attention", BACK_ENDS)
def test_the_padded_path_compiles_into_one_graph(attention):
    """`aot_eager` traces forward and backward as inductor does, but needs no C compiler and no twenty seconds."""
    torch._dynamo.reset()
    model = build(attention=attention)
    batch = padded_batch()
    expected = model(**batch)
    expected.loss.backward()
    expected_gradients = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    outputs = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
    outputs.loss.backward()
    assert worst(outputs.logits, expected.logits) < 1e-5
    assert worst(outputs.loss, expected.loss) < 1e-6
    for name, gradient in gradients(model).items():
        assert worst(gradient, expected_gradients[name]) < 1e-5, name


# --- transformers.Trainer ----------------------------------------------------------------------------------------


def trainer(model, rows, folder, **arguments):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 7,
    }
    return Trainer(model, TrainingArguments(**defaults | arguments), train_dataset=rows, eval_dataset=rows)


def alternating_rows(number, length=12, labels_a_row=lambda row: 3):
    """Rows of two alternating tokens; some tokens are masked (id 4) and are the labels: the neighbours tell them."""
    rows = []
    for row in range(number):
        generator = torch.Generator().manual_seed(row)
        pair = torch.randperm(8, generator=generator)[:2] + 5
        ids = pair.repeat(length // 2)
        chosen = torch.randperm(length, generator=generator)[: labels_a_row(row)]
        labels = torch.full_like(ids, -100)
        labels[chosen] = ids[chosen]
        rows.append({"input_ids": ids.index_fill(0, chosen, 4), "labels": labels})
    return rows


class TestTrainer:
    def test_trains_evaluates_saves_and_reloads(self, tmp_path):
        rows = alternating_rows(64)
        model = build(initializer_range=0.02)
        run = trainer(model, rows, tmp_path / "run", max_steps=60, eval_accumulation_steps=2)
        before = run.evaluate()["eval_loss"]
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
        after = run.evaluate()["eval_loss"]
        assert after < 0.6 * before

        predictions = run.predict(rows)
        assert predictions.predictions.shape == (64, 12, TINY["vocab_size"])
        assert predictions.metrics["test_loss"] == pytest.approx(after)

        run.save_model(tmp_path / "saved")
        loaded = load(AutoModelForMaskedLM, tmp_path / "saved")
        assert_equal_tensors(loaded, model)
        assert trainer(loaded, rows, tmp_path / "again").evaluate()["eval_loss"] == pytest.approx(after)

    def trained(self, tmp_path, build_model, rows, batch_size, accumulation):
        model = build_model()
        run = trainer(
            model,
            rows,
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",  # Adam would magnify the rounding of gradients near zero
            learning_rate=0.1,
        )
        run.train()
        return model, [entry["loss"] for entry in run.state.log_history if "loss" in entry]

    # The number of labels differs from row to row, so that a mean of means would not do.
    LABELLED_TOKENS = alternating_rows(24, labels_a_row=lambda row: 1 + row % 7)
    PROBLEMS = {
        "masked language": (lambda: build(hidden_dropout_prob=0.0), LABELLED_TOKENS),
        "tokens": (
            lambda: build(AutoModelForTokenClassification, hidden_dropout_prob=0.0, num_labels=16),
            LABELLED_TOKENS,
        ),
        "regression": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=1),
            [{"input_ids": random_ids(12, seed=row), "labels": math.sin(row)} for row in range(24)],
        ),
        "several labels": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=3),
            [{"input_ids": random_ids(12, seed=row), "labels": [row % 2 / 1, row % 3 / 2, 1.0]} for row in range(24)],
        ),
        "single label": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=3),
            [{"input_ids": random_ids(12, seed=row), "labels": row % 3} for row in range(24)],
        ),
    }

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_accumulating_four_times_two_rows_equals_eight(self, problem, tmp_path):
        build_model, rows = self.PROBLEMS[problem]
        one, losses = self.trained(tmp_path, build_model, rows, 8, 1)
        four, accumulated_losses = self.trained(tmp_path, build_model, rows, 2, 4)
        assert accumulated_losses == pytest.approx(losses, abs=1e-4)  # Trainer rounds what it logs
        for name, tensor in one.state_dict().items():
            assert worst(four.state_dict()[name], tensor) < 1e-6, name
