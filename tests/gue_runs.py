"""Runs of run_gue.py for tests: a task that is easily learned, a tiny model, in this process."""

import csv
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from models import ROOT
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers import models as words
from transformers import PreTrainedTokenizerFast

import run_gue
from dnabert2.checkpoints import save_tokenizer
from dnabert2.errors import run_script
from dnabert2.loading import load_tokenizer, new_model


SIZES = "hidden_size=32,num_attention_heads=2,intermediate_size=64,initializer_range=0.1"
NO_DROPOUT = f"{SIZES},hidden_dropout_prob=0,attention_probs_dropout_prob=0"


def save_base(folder: Path, overrides: str = NO_DROPOUT) -> Path:
    """A model of masked language modelling as run_mlm.py leaves one, with random weights."""
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    torch.manual_seed(0)
    new_model(ROOT / "configs" / "tiny.json", tokenizer, overrides).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def sequences(rows: int, seed: int, length: int = 40) -> list[tuple[str, int]]:
    """Every other one is rich in A and T: label 1."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        at = 0.9 if row % 2 else 0.1
        letters = rng.choice(list("ACGT"), size=length + int(rng.integers(20)), p=[at / 2, 0.5 - at / 2] * 2)
        found.append(("".join(letters), row % 2))
    return found


def random_bases(rows: int, length: int, seed: int) -> list[str]:
    """Sequences with nothing in them."""
    return ["".join(row) for row in np.random.default_rng(seed).choice(list("ACGT"), size=(rows, length))]


def write_task(folder: Path, label=str, splits=("train", "dev", "test"), rows=(64, 22, 26)) -> Path:
    """A task's folder; `label` makes a row's label of 0 or 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(zip(("train", "dev", "test"), rows, strict=True)):
        if split in splits:
            lines = [f"{sequence},{label(kind)}" for sequence, kind in sequences(count, seed)]
            (folder / f"{split}.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")
    return folder


def kmer_tokenizer(folder: Path, is_overlapping: bool) -> int:
    """Saves one of words of 3 letters: overlapping as DNABERT's, or after each other as NT's. Returns its size."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *map("".join, itertools.product("ACGT", repeat=3)), *"ACGTN"]
    tokenizer = Tokenizer(words.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    if is_overlapping:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ACGT]{3}|."), "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **names).save_pretrained(folder)
    return len(vocabulary)


def command(**options) -> list[str]:
    """A command line of few steps; an option's value None leaves it out, True makes it a flag, a list many values."""
    options = {
        "max_train_steps": 20,
        "total_train_batch_size": 16,
        "learning_rate": 5e-3,
        "num_warmup_steps": 1,
        "eval_steps": 5,
        "logging_steps": 1,
        "seeds": 1,
    } | options
    parts = []
    for name, value in options.items():
        if value is not None:
            values = [] if value is True else value if isinstance(value, list) else [value]
            parts += [f"--{name}", *map(str, values)]
    return parts


def run_here(monkeypatch, *parts: str, **environment: str):
    """Runs the script in this process on its CPU, under what a launcher would set in the environment."""
    run_main_here(monkeypatch, partial(run_script, run_gue.main), *parts, **environment)


def run_main_here(monkeypatch, main: Callable[[], None], *parts: object, **environment: str):
    """The same for any script's main, as those of benchmarks/."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["script.py", *map(str, parts)])
            for name, value in {"ACCELERATE_USE_CPU": "true", **environment}.items():
                patch.setenv(name, value)
            main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def predictions(folder: Path) -> list[dict]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))
