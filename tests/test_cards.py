"""Cards of all kinds of models, from what runs leave, read back by huggingface_hub; `test_hub` has those it pushes.

Examples are computed by real pipelines on tiny models, in this process.
"""

import json
from pathlib import Path

import gue_runs
import pytest
from huggingface_hub import ModelCard
from models import ROOT
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from dnabert2 import cards, publish, releases, run_records
from dnabert2.checkpoints import save_tokenizer
from dnabert2.errors import UsageError
from dnabert2.gue_sources import model_fingerprint
from dnabert2.loading import load_tokenizer


def write(folder: Path, release: Path, **options) -> ModelCard:
    release.mkdir()
    releases.assemble(folder, release, options.get("base_model"))
    cards.write_card(release, folder, "user/model", **options)
    return ModelCard.load(release / "README.md")


def classifier(folder: Path, scale: tuple | None = None, **config) -> Path:
    """A model with a random head, in the folder of a run."""
    base = gue_runs.save_base(folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=True, **config)
    if scale:
        model.config.label_mean, model.config.label_std = scale
    model.save_pretrained(folder)
    return folder


def results(test: dict, **others) -> str:
    """all_results.json of a run on GUE."""
    arguments = {"model_name_or_path": "out/base", "model_files": "abc", "dataset_name": None, "seed": 7}
    arguments |= {"dataset_config_name": None, "selection_metric": "loss", "reverse_complement": True, "kmer": None}
    values = {"task": "mouse/3", "seed": 7, "problem_type": "single_label_classification", "test": test}
    values |= {"dev": {"step": 5, "loss": 0.5}, "rows": {"train": 64, "dev": 22, "test": 2600}}
    values |= {"train_is_from_dev": False, "max_seq_length": 33, "num_processes": 1, "arguments": arguments}
    return json.dumps(values | {"recipe": {"learning_rate": 3e-5, "num_train_epochs": None}} | others)


def test_a_task_of_gue_is_in_the_model_index(tmp_path):
    folder = classifier(tmp_path / "run")
    (folder / "all_results.json").write_text(results({"loss": 0.4, "mcc": 0.5, "auroc": None, "collapsed": True}))
    card = write(folder, tmp_path / "release")
    [result] = card.data.eval_results
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("GUE", "GUE mouse/3", "mouse/3")
    assert (result.dataset_split, result.metric_type, result.metric_value) == ("test", "matthews_correlation", 0.5)
    assert card.data.model_name == "model" and card.data.get("base_model") is None
    assert "one and the same for all rows" in card.text and "2,600 rows" in card.text
    assert "| learning_rate | 3e-05 |" in card.text and "num_train_epochs" not in card.text
    assert "Training saw both" in card.text and "A pipeline answers for the one strand" in card.text


def test_a_base_that_the_run_does_not_know_can_be_named(tmp_path):
    card = write(classifier(tmp_path / "run"), tmp_path / "release", base_model="user/base")
    assert card.data.base_model == "user/base" and card.data.base_model_relation == "finetune"
    assert "no record of how the model was trained from [user/base]" in card.text


def test_a_regression_is_told_in_the_unit_of_its_labels(tmp_path):
    folder = classifier(tmp_path / "run", scale=(3.5, 2.0), problem_type="regression", num_labels=1)
    card = write(folder, tmp_path / "release")
    assert "model.config.label_std + model.config.label_mean" in card.text and "Its labels are" not in card.text
    assert [len(example["output"]) for example in card.data.widget] == [1] * len(cards.EXAMPLES)


def test_several_labels_a_row_have_probabilities_of_their_own(tmp_path):
    names = {"id2label": {0: "promoter", 1: "enhancer"}, "problem_type": "multi_label_classification"}
    card = write(classifier(tmp_path / "run", **names), tmp_path / "release")
    scores = [answer["score"] for answer in card.data.widget[0]["output"]]
    assert "promoter, enhancer" in card.text and sum(scores) != pytest.approx(1, abs=1e-3)


def test_a_reader_of_k_mers_is_asked_in_them(tmp_path):
    folder = classifier(tmp_path / "run")
    values = json.loads(results({"mcc": 0.5, "collapsed": False}))
    values["arguments"]["kmer"] = 6
    (folder / "all_results.json").write_text(json.dumps(values))
    card = write(folder, tmp_path / "release")
    assert "It reads overlapping 6-mers" in card.text
    assert card.data.widget[0]["text"].startswith("GCCTGT CCTGTA CTGTAA ")


def test_a_model_without_a_head_is_for_embeddings(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(folder)
    card = write(folder, tmp_path / "release")
    assert card.data.pipeline_tag == "feature-extraction" and card.data.get("widget") is None
    assert "means over the tokens" in card.text and "fill_mask" not in card.text


def test_another_architecture_needs_no_code_and_its_licence_is_unknown(tmp_path):
    tokenizer, folder = load_tokenizer(ROOT / "bpe_tokenizer"), tmp_path / "run"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=3, **sizes)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    card = write(folder, tmp_path / "release")
    assert card.data.license == "unknown" and "trust_remote_code" not in card.text and "ALiBi" not in card.text
    assert not [*(tmp_path / "release").glob("*.py")]


def test_checkpoints_before_the_first_logged_step_have_no_curves(tmp_path):
    folder = gue_runs.save_base(tmp_path / "checkpoint-3")
    recipe = {"base_model": None, "dataset": None, "is_further": False, "files": ["a.fa"] * 25, "corpus": "9 bases"}
    state = {"step": 3, "recipe": recipe | {"hyperparameters": {"max_train_steps": 1000, "max_seq_length": 128}}}
    (folder / "run_state.json").write_text(json.dumps(state))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation_loss": 8.5, "validation_accuracy": 0.0}\n{"ste')
    card = write(folder, tmp_path / "release")
    assert "step 3 of 1,000." in card.text and "and 5 more" in card.text
    assert "held out of training, at step 0:" in card.text  # and not at that of the weights
    assert "8.5000" in card.text and "curves.png" not in card.text


def test_an_adapter_runs_its_base_s_code_only_if_told_to(monkeypatch, tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "user/base"}))
    with pytest.raises(UsageError, match=r"runs the code of its base user/base .* --trust_remote_code"):
        write(folder, tmp_path / "release")
    monkeypatch.setattr("sys.argv", ["publish", str(folder), "user/model"])
    monkeypatch.setattr(publish, "open_repository", lambda *_: pytest.fail("made a repository"))
    with pytest.raises(UsageError, match="--trust_remote_code"):
        publish.main()


def test_a_card_can_be_had_without_a_push(monkeypatch, capsys, tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["cards", str(folder), "user/model"])
    cards.main()
    card = ModelCard(capsys.readouterr().out)
    assert card.data.pipeline_tag == "fill-mask" and 'model="user/model"' in card.text
    assert not (folder / "README.md").exists()


class TestResultsOfGue:
    @pytest.fixture
    def model(self, tmp_path) -> Path:
        return gue_runs.save_base(tmp_path / "model")

    @staticmethod
    def gue_results(folder: Path, model_files: str) -> Path:
        dataset = {"task": "mouse/3", "group": "TF-M", "metric": "mcc", "seeds": {"1": 50.0, "2": 54.0}, "mean": 52.0}
        dataset |= {"sd": 2.83, "published": {"DNABERT-2": 66.47}}
        folder.mkdir()
        summary = {"datasets": [dataset], "runs_of": [{"model_files": model_files}]}
        (folder / "gue_results.json").write_text(json.dumps(summary))
        for name in ("gue_results.md", "gue_results.png"):
            (folder / name).write_text("")
        return folder

    def test_of_the_pretrained_model_are_in_its_card(self, tmp_path, model):
        gue = self.gue_results(tmp_path / "gue", model_fingerprint(str(model)))
        card = write(model, tmp_path / "release", gue_results=gue)
        [result] = card.data.eval_results
        assert (result.dataset_split, result.metric_type, result.metric_value) == (
            "test",
            "matthews_correlation",
            0.52,
        )
        assert "| mouse/3 | mcc | 2 | 52.00 ± 2.83 | 66.47 |" in card.text
        assert (tmp_path / "release" / "gue_results.md").is_file()

    def test_of_another_model_are_refused(self, tmp_path, model):
        gue = self.gue_results(tmp_path / "gue", "of other weights")
        with pytest.raises(UsageError, match="were not, or not all, of the model"):
            write(model, tmp_path / "release", gue_results=gue)


def test_results_name_no_folders(tmp_path):
    values = {"model": str(tmp_path / "base"), "files": [str(tmp_path), "user/name"], "hub": "user/name", "score": 0.5}
    assert run_records.public(values) == {
        "model": "base",
        "files": [tmp_path.name, "user/name"],
        "hub": "user/name",
        "score": 0.5,
    }
