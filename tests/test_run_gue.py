"""run_gue.py from a command to its table: scores, files, runs that are kept, tasks of every kind, other models.

pytest tests/test_run_gue.py
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from gue_runs import (
    SIZES,
    command,
    kmer_tokenizer,
    lines,
    predictions,
    results,
    run_here,
    save_base,
    sequences,
    write_task,
)
from models import ROOT
from safetensors.torch import load_file, save_file
from sklearn.metrics import matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    PreTrainedTokenizerFast,
)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """A function that runs the script on the base into tmp_path/out."""

    def run_with(environment=None, **options):
        options = {"model_name_or_path": base, "output_dir": tmp_path / "out"} | options
        run_here(monkeypatch, *command(**options), **(environment or {}))
        return tmp_path / "out"

    return run_with


def refusal(run, **options):
    """The one line with which the script ends; `sys.exit` of a text is exit status 1 and the text on stderr."""
    with pytest.raises(SystemExit) as error:
        run(**options)
    message = error.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def gue(tmp_path_factory):
    """A folder as GUE's with three of its tasks, of which one has no train."""
    folder = tmp_path_factory.mktemp("gue")
    write_task(folder / "tf" / "0")
    write_task(folder / "mouse" / "3")
    write_task(folder / "mouse" / "1", splits=("dev", "test"), rows=(64, 60, 26))
    return folder


@pytest.fixture(scope="module")
def finished(gue, base, tmp_path_factory):
    """The output of all tasks of two seeds."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, *command(model_name_or_path=base, data_dir=gue, seeds=[1, 2], output_dir=output))
    return output


def test_a_task_that_can_be_learned_is_learned_and_predictions_give_its_scores(finished):
    run = finished / "tf/0/seed-1"
    found, rows = results(run), predictions(run)
    labels, predicted = ([int(row[name]) for row in rows] for name in ("label", "predicted"))
    assert found["test"]["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted)) and found["test"]["mcc"] > 0.5
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 27)]
    assert labels == [kind for _, kind in sequences(26, seed=2)]
    assert all(float(row["probability_0"]) + float(row["probability_1"]) == pytest.approx(1) for row in rows)
    assert [row["predicted"] == "1" for row in rows] == [float(row["probability_1"]) > 0.5 for row in rows]
    assert found["rows"] == {"train": 64, "dev": 22, "test": 26} and found["recipe"]["max_train_steps"] == 20


def test_the_best_step_on_dev_is_the_one_that_is_tested(run, gue):
    """With so high a rate the last steps are worse than the first."""
    options = {"data_dir": gue, "tasks": "tf/0", "max_train_steps": 12, "eval_steps": 1, "learning_rate": 0.03}
    folder = run(**options, save_model=True) / "tf/0/seed-1"
    losses = {line["step"]: line["dev_loss"] for line in lines(folder)}
    best = results(folder)["dev"]
    assert losses[best["step"]] == best["loss"] == min(losses.values()) and best["step"] < 12
    shutil.move(folder, folder.parent / "kept")
    run(**options | {"tasks": "tf/0"}, save_model=True)
    assert predictions(folder) == predictions(folder.parent / "kept")  # a run that begins anew ends the same


def test_the_tables_name_what_is_there_and_what_is_missing(finished, capsys):
    page = (finished / "gue_results.md").read_text()
    summary = json.loads((finished / "gue_results.json").read_text())
    assert [dataset["task"] for dataset in summary["datasets"]] == ["tf/0", "mouse/1", "mouse/3"]
    assert summary["overall"]["datasets"] == 3 and "mean over the 3" in page and "25 of the 28" in page
    assert summary["datasets"][1]["train_is_from_dev"] and "trained on a part of dev †" in page
    scores = [100 * results(finished / f"tf/0/seed-{seed}")["test"]["mcc"] for seed in (1, 2)]
    assert summary["datasets"][0]["mean"] == pytest.approx(np.mean(scores))
    assert summary["datasets"][0]["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert "## Data" in page and (finished / "gue_results.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_kept_and_other_arguments_refused(run, gue, base, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(out / "tf/0/seed-2")
    before = (out / "tf/0/seed-1/all_results.json").stat().st_mtime_ns
    run(data_dir=gue, seeds=[1, 2], model_name_or_path=shutil.copytree(base, tmp_path / "moved"))
    assert (out / "tf/0/seed-1/all_results.json").stat().st_mtime_ns == before
    assert predictions(out / "tf/0/seed-2") == predictions(finished / "tf/0/seed-2")
    assert "learning_rate was 0.005, is 0.003" in refusal(run, data_dir=gue, seeds=[1, 2], learning_rate=3e-3)
    assert "run without --save_model" in refusal(run, data_dir=gue, save_model=True)
    changed = shutil.copytree(gue, tmp_path / "changed")
    write_task(changed / "tf" / "0", rows=(62, 22, 26))
    assert "data_files was" in refusal(run, data_dir=changed)


def test_the_fresh_head_is_of_the_seed(finished):
    one, two = (lines(finished / f"tf/0/seed-{seed}")[0]["loss"] for seed in (1, 2))
    assert one != two


def test_a_saved_model_predicts_files_in_another_process_as_in_its_run(run, gue, tmp_path):
    folder = run(data_dir=gue, tasks="tf/0", save_model=True) / "tf/0/seed-1"
    fasta = tmp_path / "new.fa"
    fasta.write_text("".join(f">s{row}\n{sequence}\n" for row, (sequence, _) in enumerate(sequences(26, seed=2))))
    for name, file in (("fasta", fasta), ("table", gue / "tf/0/test.csv")):
        parts = ["--model_name_or_path", folder, "--predict_file", file, "--output_dir", tmp_path / name]
        subprocess.run(
            [sys.executable, ROOT / "run_gue.py", *map(str, parts)],
            env=os.environ | {"HF_HOME": str(tmp_path / "home"), "ACCELERATE_USE_CPU": "true"},
            check=True,
        )
    expected = [float(row["probability_1"]) for row in predictions(folder)]
    rows = predictions(tmp_path / "fasta")
    assert [row["id"] for row in rows] == [f"s{row}" for row in range(26)] and "label" not in rows[0]
    for name in ("fasta", "table"):
        assert [float(row["probability_1"]) for row in predictions(tmp_path / name)] == pytest.approx(
            expected, abs=1e-5
        )


def test_a_folder_of_ones_own_keeps_the_names_of_its_labels(run, tmp_path):
    task = write_task(tmp_path / "mine", label=["background", "promoter"].__getitem__)
    folder = run(data_dir=task, save_model=True) / "mine/seed-1"
    assert set(predictions(folder)[0]) == {
        "row", "label", "predicted", "probability_background", "probability_promoter",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "background", "1": "promoter"}
    assert config["problem_type"] == "single_label_classification"


def test_a_dataset_with_the_same_columns(run, tmp_path):
    task = write_task(tmp_path / "user" / "genes")
    (task / "dev.csv").rename(task / "validation.csv")
    run(dataset_name=task)
    assert results(tmp_path / "out/user/genes/seed-1")["rows"] == {"train": 64, "dev": 22, "test": 26}
    moved = shutil.copytree(task, tmp_path / "moved" / "user" / "genes")
    run(dataset_name=moved)  # the same files: finished
    write_task(moved, splits=("train",), rows=(62, 0, 0))
    assert "data_files was" in refusal(run, dataset_name=moved)


def test_several_labels_a_row(run, tmp_path):
    task = write_task(tmp_path / "mine", label=["gc;short", "at"].__getitem__)
    folder = run(data_dir=task, problem_type="multi_label_classification") / "mine/seed-1"
    assert {row["label"] for row in predictions(folder)} == {"gc;short", "at"}
    assert results(folder)["test"]["auroc"] > 0.9
    assert {row["predicted"] for row in predictions(folder)} & {"gc;short", "at"}


def assert_predicts_as_in_its_run(run, folder, file):
    """Nothing of how its run read sequences has to be told again."""
    run(model_name_or_path=folder, predict_file=file, output_dir=folder / "again")
    found, expected = ([float(row["probability_1"]) for row in predictions(at)] for at in (folder / "again", folder))
    assert found == pytest.approx(expected, abs=1e-5)


def test_both_strands_are_trained_on_and_averaged(run, gue):
    folder = run(data_dir=gue, tasks="tf/0", reverse_complement=True, save_model=True) / "tf/0/seed-1"
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    sequence, _ = sequences(26, seed=2)[0]
    other = sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))
    with torch.no_grad():
        values = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1] for text in (sequence, other)]
    assert float(predictions(folder)[0]["probability_1"]) == pytest.approx(np.mean(values), abs=1e-5)
    assert values[0] != values[1]
    assert_predicts_as_in_its_run(run, folder, gue / "tf/0/test.csv")


def test_random_weights_are_a_baseline(run, gue):
    sizes = {"config_name": ROOT / "configs" / "tiny.json", "config_overrides": SIZES}
    folder = run(model_name_or_path=None, data_dir=gue, tasks="tf/0", **sizes) / "tf/0/seed-1"
    assert results(folder)["arguments"]["config_overrides"] == SIZES


def test_bf16(run, gue):
    folder = run({"ACCELERATE_MIXED_PRECISION": "bf16"}, data_dir=gue, tasks="tf/0", save_model=True) / "tf/0/seed-1"
    assert results(folder)["arguments"]["mixed_precision"] == "bf16" and results(folder)["test"]["mcc"] > 0.5
    assert {p.dtype for p in AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True).parameters()} == {torch.float32}  # fmt: skip


def test_a_bert_of_kmers(run, gue, tmp_path):
    size = kmer_tokenizer(tmp_path / "bert", is_overlapping=True)
    config = BertConfig(vocab_size=size, max_position_embeddings=48, **SMALL)
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    options = {"model_name_or_path": tmp_path / "bert", "data_dir": gue, "tasks": "tf/0"}
    folder = run(**options, kmer=3, save_model=True) / "tf/0/seed-1"
    found = results(folder)
    assert found["test"]["mcc"] > 0.5 and found["max_seq_length"] == 48 and found["truncated_rows"]["train"] > 0
    assert "rows cut to 48 tokens" in (tmp_path / "out" / "gue_results.md").read_text()
    assert "--kmer" in refusal(run, **options, output_dir=tmp_path / "other")
    assert_predicts_as_in_its_run(run, folder, gue / "tf/0/test.csv")


def test_an_esm_with_lora_as_nucleotide_transformer(run, gue, tmp_path):
    size = kmer_tokenizer(tmp_path / "esm", is_overlapping=False)
    rotary = {"position_embedding_type": "rotary", "emb_layer_norm_before": False, "token_dropout": False}
    config = EsmConfig(vocab_size=size, mask_token_id=4, pad_token_id=0, **SMALL, **rotary)
    torch.manual_seed(0)
    EsmForMaskedLM(config).save_pretrained(tmp_path / "esm")
    options = {"model_name_or_path": tmp_path / "esm", "data_dir": gue, "tasks": "tf/0", "use_lora": True}
    assert "--lora_target_modules: the model has no Wqkv; its layers are dense,key,query" in refusal(run, **options)
    folder = run(**options, lora_target_modules="query,value") / "tf/0/seed-1"
    assert results(folder)["test"]["mcc"] > 0.5 and results(folder)["adapter_parameters"] == 2 * 2 * 8 * 64


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": "tf/1"}, "has no tf/1"),
        ({"tasks": "tf/9"}, "no task or group 'tf/9'; near to it: tf/"),
        ({"data_dir": "/nowhere"}, "--data_dir /nowhere: no such folder"),
        ({"dataset_name": "a/b"}, "--data_dir or --dataset_name"),
        ({"num_train_epochs": 2}, "--max_train_steps or --num_train_epochs, not both"),
        ({"selection_metric": "spearman"}, "--selection_metric spearman: of single_label_classification one of loss"),
        ({"problem_type": "regression"}, "the tasks of GUE are of single_label_classification"),
        ({"num_warmup_steps": 21}, "--num_warmup_steps 21 are more than the 20 steps"),
        ({"learning_rate": float("nan")}, "--learning_rate must be greater than 0"),
        ({"per_device_train_batch_size": 3}, "not a multiple of 3"),
        ({"config_name": "tiny.json"}, "--model_name_or_path, or --config_name"),
        ({"merge_adapter": True}, "--merge_adapter is of an adapter"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"predict_file": "x.csv"}, "leave out --data_dir"),
        ({"predict_file": "x.csv", "data_dir": None}, "x.csv"),
        ({"seeds": [-1]}, "--seeds must be from 0"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2 needs"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(run, gue, options, told):
    assert told in refusal(run, **{"data_dir": gue} | options)


def test_recipes_are_checked_before_the_first_run(run, gue, tmp_path):
    """54 rows of train make 6 steps, the 64 of the task before 7."""
    epoch = {"max_train_steps": None, "num_train_epochs": 1, "total_train_batch_size": 10, "num_warmup_steps": 7}
    told = refusal(run, data_dir=gue, tasks=["tf/0", "mouse/1"], **epoch)
    assert "--num_warmup_steps 7 are more than the 6 steps" in told
    assert not (tmp_path / "out/tf/0").exists()


def test_a_folder_of_gue_alone_is_a_task_of_ones_own_and_that_is_said(run, gue, capsys):
    run(data_dir=gue / "tf/0", max_train_steps=1, num_warmup_steps=0)
    assert "is read as a task of your own; for the recipe of GUE's" in capsys.readouterr().out


def test_a_model_without_a_trained_head_predicts_nothing(run, gue, base):
    options = {"predict_file": gue / "tf/0/test.csv", "model_name_or_path": base}
    assert "is not fine-tuned: it has no bert.pooler.dense.bias" in refusal(run, **options)


def test_missing_weights_and_heads_of_other_labels_are_refused(run, gue, base, tmp_path):
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "Wqkv" not in name}, broken / "model.safetensors", {"format": "pt"}
    )
    told = refusal(run, data_dir=gue, tasks="tf/0", model_name_or_path=broken)
    assert "lacks 4 of this model's weights, as bert.encoder.layer.0.attention.self.Wqkv.bias" in told
