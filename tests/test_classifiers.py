"""LoRA: what is adapted, what is saved, and that an adapter is the same model wherever it is loaded.

pytest tests/test_classifiers.py
"""

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from gue_runs import command, predictions, results, run_here, save_base, sequences, write_task
from models import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, XLNetConfig, XLNetLMHeadModel

from dnabert2 import checkpoints, classifiers
from dnabert2.gue_arguments import LORA_TARGETS
from dnabert2.loading import load_tokenizer, new_model


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter, *texts = sys.argv[1:]
torch.manual_seed(99)
model = AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=True)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
print(json.dumps(torch.cat(logits).softmax(-1)[:, 1].tolist()))
"""


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The folder of a run with LoRA; beside it its base and its task."""
    folder = tmp_path_factory.mktemp("lora")
    options = {
        "model_name_or_path": save_base(folder / "base"),
        "data_dir": write_task(folder / "task"),
        "output_dir": folder / "out",
        "use_lora": True,
        "save_model": True,
        "merge_adapter": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, *command(**options))
    return folder / "out/task/seed-1"


def test_under_two_percent_of_the_large_model_are_adapters():
    with torch.device("meta"):
        model = new_model(
            ROOT / "configs" / "117M.json",
            load_tokenizer(ROOT / "bpe_tokenizer"),
            auto_class=AutoModelForSequenceClassification,
        )
        args = Namespace(
            lora_target_modules=LORA_TARGETS, lora_r=8, lora_alpha=32, lora_dropout=0.05, model_name_or_path="base"
        )
        model = classifiers.add_adapter(model, args)
    counts = classifiers.count_parameters(model)
    adapters = 12 * 8 * ((768 + 3 * 768) + 2 * 768 + (768 + 2 * 3072) + (3072 + 768))  # of four matrices a layer
    whole = (768 + 1) * 768 + (768 + 1) * 2  # pooler and classifier
    assert counts["adapter_parameters"] == adapters < 0.02 * counts["parameters"]
    assert counts["trained_parameters"] == adapters + whole
    assert 117e6 < counts["parameters"] < 118e6
    assert not [name for name, _ in model.named_parameters() if "pooler" in name and "lora" in name]


def test_the_adapter_holds_pooler_and_classifier_whole_and_no_more_of_the_base(adapted):
    names = load_file(adapted / "adapter_model.safetensors").keys()
    assert {name.split("model.bert.")[-1] for name in names if "pooler" in name} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    assert sum("lora_" in name for name in names) == 2 * 2 * 4 and len(names) == 16 + 4
    config = json.loads((adapted / "adapter_config.json").read_text())
    assert {"pooler", "classifier"} <= {*config["modules_to_save"]}
    assert config["base_model_name_or_path"] == str(adapted.parents[2] / "base")
    assert results(adapted)["test"]["mcc"] > 0.5


def test_the_adapter_is_the_same_in_plain_peft_in_another_process_with_another_seed(adapted, tmp_path):
    texts = [sequence for sequence, _ in sequences(26, seed=2)]
    process = subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, adapted.parents[2] / "base", adapted, *texts],
        env=os.environ | {"HF_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    expected = [float(row["probability_1"]) for row in predictions(adapted)]
    assert json.loads(process.stdout) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [".", "merged"])
def test_adapter_and_merged_model_predict_what_the_run_predicted(adapted, name, tmp_path, monkeypatch):
    options = {"model_name_or_path": adapted / name, "predict_file": adapted.parents[2] / "task/test.csv"}
    parts = [f"--{key}={value}" for key, value in (options | {"output_dir": tmp_path}).items()]
    run_here(monkeypatch, *parts)
    found, expected = ([float(row["probability_1"]) for row in predictions(at)] for at in (tmp_path, adapted))
    assert found == pytest.approx(expected, abs=1e-5)
    assert [row["predicted"] for row in predictions(tmp_path)] == [row["predicted"] for row in predictions(adapted)]


def test_a_merged_model_is_a_plain_one(adapted):
    merged = load_file(adapted / "merged/model.safetensors")
    base = load_file(adapted.parents[2] / "base/model.safetensors")
    assert not [name for name in merged if "lora" in name or "base_layer" in name]
    assert {name for name in base if name.startswith("bert.")} <= merged.keys()
    assert (adapted / "merged/modeling_dnabert2.py").is_file()


def test_an_adapter_is_no_base_to_train_on(adapted, tmp_path, monkeypatch):
    options = {"model_name_or_path": adapted, "data_dir": adapted.parents[2] / "task", "output_dir": tmp_path}
    with pytest.raises(SystemExit, match="is an adapter: train on its base"):
        run_here(monkeypatch, *command(**options))


def test_an_adapter_without_its_weights_is_refused(adapted, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text((adapted / "adapter_config.json").read_text())
    parts = ["--model_name_or_path", tmp_path, "--predict_file", adapted.parents[2] / "task/test.csv"]
    with pytest.raises(SystemExit, match="safetensors is missing"):
        run_here(monkeypatch, *map(str, parts), "--output_dir", str(tmp_path / "out"))


def test_a_head_of_other_names_is_saved_with_its_adapter(tmp_path, monkeypatch):
    """XLNet's: its summary and projection are fresh, and no part of its encoder."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64)
    XLNetLMHeadModel(config).save_pretrained(tmp_path / "base")
    checkpoints.save_tokenizer(tokenizer, tmp_path / "base")
    options = {"model_name_or_path": tmp_path / "base", "data_dir": write_task(tmp_path / "task"), "use_lora": True}
    options |= {"lora_target_modules": "layer_1", "save_model": True, "max_train_steps": 2, "output_dir": tmp_path}
    run_here(monkeypatch, *command(**options))
    folder = tmp_path / "task/seed-1"
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert {"summary.weight", "logits_proj.weight"} <= {".".join(name.split(".")[-2:]) for name in names}
    options = {"predict_file": tmp_path / "task/test.csv", "output_dir": tmp_path / "new"}
    parts = [f"--{key}={value}" for key, value in (options | {"model_name_or_path": folder}).items()]
    torch.manual_seed(99)
    run_here(monkeypatch, *parts)
    found, expected = ([float(row["probability_1"]) for row in predictions(at)] for at in (tmp_path / "new", folder))
    assert found == pytest.approx(expected, abs=1e-5)
