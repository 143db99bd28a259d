"""The weights in the repository: what `from_pretrained(".")` gives right after a clone.

pytest tests/test_default_checkpoint.py
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from gue_runs import command, results, run_here
from models import ROOT
from safetensors import safe_open


# an Alu element's consensus; behind the mask is GAGGC
ALU = "GCCTGTAATCCCAGCACTTTGGGAGGCTGAGGCAGGAGAATCGCTTGAACCCGG[MASK]GGAGGTTGCAGTGAGCCGAGATCGCGCCACTGCACTCCAGCCTGGGC"

LOAD = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

root, masked = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(root, trust_remote_code=True, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=True)
guess = pipeline("fill-mask", model=root, trust_remote_code=True, dtype=torch.float32)(masked, top_k=1)[0]
body, body_info = AutoModel.from_pretrained(root, trust_remote_code=True, output_loading_info=True)
print(json.dumps({
    "problems": [str(problem) for problem in info.values() if problem],
    "missing": sorted(body_info["missing_keys"]),
    "dtype": str(model.dtype),
    "guess": [guess["token_str"], guess["score"]],
}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT), ALU],
        env=os.environ | {"HF_HOME": str(tmp_path_factory.mktemp("home"))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_weights_are_all_there_in_bf16_and_small():
    path = ROOT / "model.safetensors"
    assert path.stat().st_size <= 32_000_000
    with safe_open(path, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
        assert file.metadata()["format"] == "pt"


def test_they_fit_the_models_of_the_root_config(loaded):
    assert loaded["problems"] == [] and loaded["dtype"] == "torch.bfloat16"
    assert loaded["missing"] == ["pooler.dense.bias", "pooler.dense.weight"]  # masked language modelling has none


def test_they_know_the_commonest_repeat_of_the_human_genome(loaded):
    token, score = loaded["guess"]
    assert token == "GAGGC" and score == pytest.approx(0.9389, abs=1e-3)


# --- fine-tuned ------------------------------------------------------------------------------------------------------


def promoters(rows, seed):
    """Every other one is like a promoter, rich in G and C with a TATA box; the others like what lies between genes."""
    rng = np.random.default_rng(seed)
    for row in range(rows):
        gc = 0.62 if row % 2 else 0.45
        letters = rng.choice(list("ACGT"), size=100, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])
        start = 38 + int(rng.integers(5))
        if row % 2:
            letters[start : start + 6] = list("TATAAA")
        yield "".join(letters), row % 2


def test_fine_tuned_on_a_cpu_they_tell_promoters_from_other_sequences(tmp_path, monkeypatch):
    for seed, (split, rows) in enumerate({"train": 320, "dev": 32, "test": 128}.items()):
        lines = [f"{sequence},{label}" for sequence, label in promoters(rows, seed)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")
    options = {"model_name_or_path": ROOT, "data_dir": tmp_path, "output_dir": tmp_path / "out", "learning_rate": 2e-4}
    run_here(monkeypatch, *command(**options, num_warmup_steps=4, eval_steps=20))
    assert results(tmp_path / "out" / tmp_path.name / "seed-1")["test"]["mcc"] > 0.5
