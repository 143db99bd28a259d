"""What users give by mistake, to every entry point: each ends in one line that says where and what to do.

pytest tests/test_bad_input.py

More of the converter's is in test_convert.py (BAD_RELEASES), of requests in test_handler.py (BAD_REQUESTS), of single
arguments in test_run_mlm_refusals.py, test_run_gue.py and test_train_tokenizer.py.
"""
# ruff: noqa: E501

import gzip
import json
import lzma
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gue_runs
import mlm_runs
import pytest
import torch
from models import ROOT
from safetensors import SafetensorError
from test_convert import release
from test_handler import serve
from transformers import AutoModelForMaskedLM

import train_tokenizer
from dnabert2 import convert
from dnabert2.errors import UsageError, run_script


DRAW = random.Random(1)
GENOME = "".join(DRAW.choices("ACGT", k=3_000))
FASTA = f">a\n{GENOME}\n>b\n{GENOME[::-1]}\n"
ROWS = [("".join(DRAW.choices("ACGT", k=40)), number % 2) for number in range(40)]


@dataclass
class Case:
    """
    Args:
        script: "mlm", "gue", "tokenizer" or "convert".
        spoil: given a folder of good inputs, changes them, and returns options of the command line.
        told: what its last line, or where it goes on what it says, must have in it.
        goes_on: with a warning.
    """

    script: str
    spoil: Callable[[Path], dict]
    told: list[str]
    goes_on: bool = False


class Code:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def file(name: str, content: str | bytes) -> Callable[[Path], dict]:
    """A file for --train_file."""

    def spoil(folder: Path) -> dict:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return {"train_file": folder / name}

    return spoil


def table(split: str, text: str | bytes, **options) -> Callable[[Path], dict]:
    """A split of the task."""

    def spoil(folder: Path) -> dict:
        (folder / "task" / f"{split}.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return options

    return spoil


def rows(
    change: Callable[[int, str, int], str] = lambda number, sequence, label: f"{sequence},{label}",
    header="sequence,label",
):
    return "\n".join([header, *(change(number, *row) for number, row in enumerate(ROWS, start=1))]) + "\n"


def base(change: Callable[[Path], None], **options) -> Callable[[Path], dict]:
    """The pretrained model's folder."""

    def spoil(folder: Path) -> dict:
        change(folder / "base")
        return {"model_name_or_path": folder / "base", "config_name": None, "config_overrides": None} | options

    return spoil


def config(**values) -> Callable[[Path], None]:
    def change(folder: Path):
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | values))

    return change


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


def pickled(folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(3), "b": Code()}, folder / "pytorch_model.bin")


def old_pickled(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}))


def more_tokens(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 4096, "content": "[MORE]"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def given(**options) -> Callable[[Path], dict]:
    return lambda folder: options


def folder_with(name: str, content: str) -> Callable[[Path], dict]:
    def spoil(folder: Path) -> dict:
        (folder / "out").mkdir()
        (folder / "out" / name).write_text(content)
        return {}

    return spoil


def a_folder(folder: Path) -> dict:
    (folder / "empty").mkdir()
    return {"train_file": folder / "empty"}


def released(change: Callable[[Path], None]) -> Callable[[Path], dict]:
    def spoil(folder: Path) -> dict:
        change(release(folder / "released"))
        return {}

    return spoil


CASES = {  # a line each
    # sequence files
    "an empty FASTA": Case("mlm", file("x.fa", ""), ["x.fa", "the file is empty"]),
    "headers alone": Case("mlm", file("x.fa", ">a\n>b\n"), ["x.fa", "all 2 records are empty"]),
    "some headers alone": Case("mlm", file("x.fa", f">a\n>b\n{GENOME}\n"), ["x.fa: left out 1 of 2 records"], True),
    "no header": Case("mlm", file("x.fa", GENOME), ["x.fa: line 1 is", "opens with '>'"]),
    "protein": Case("mlm", file("x.fa", ">p\nMKVLLAGFEE\n"), ["x.fa: record 1 (p), position 4: 'L'"]),
    "protein of nucleotide letters": Case("mlm", file("x.fa", f">p\nMKVHRDSKWY\n>d\n{GENOME}\n"), ["x.fa: 1 of 2 records are more than half IUPAC"], True),
    "gz cut": Case("mlm", file("x.fa.gz", gzip.compress(FASTA.encode())[:-900]), ["x.fa.gz: unreadable, truncated or corrupt"]),
    "gz cut in its first bytes": Case("tokenizer", file("x.fa.gz", gzip.compress(FASTA.encode())[:5]), ["x.fa.gz: unreadable, truncated"]),
    "xz cut": Case("tokenizer", file("x.fa.xz", lzma.compress(FASTA.encode())[:-300]), ["x.fa.xz: unreadable, truncated or corrupt"]),
    "gz that is not": Case("tokenizer", file("x.fa.gz", FASTA), ["x.fa.gz: unreadable"]),
    "plain that is gz": Case("mlm", file("x.fa", gzip.compress(FASTA.encode())), ["x.fa: line 1 is"]),
    "a wrong ending": Case("mlm", file("x.docx", FASTA), ["x.docx: unknown ending; rename"]),
    "FASTA named FASTQ": Case("tokenizer", file("x.fq", FASTA), ["x.fq: line 1 is", "opens with '@'"]),
    "CRLF": Case("mlm", file("x.fa", FASTA.replace("\n", "\r\n")), ["1 species"], True),
    "lower case": Case("mlm", file("x.fa", FASTA.lower()), ["1 species"], True),
    "all N": Case("mlm", file("x.fa", ">n\n" + "N" * 5_000 + "\n"), ["x.fa", "not enough bases for a single window"]),
    "all N for a vocabulary": Case("tokenizer", file("x.fa", ">n\n" + "N" * 5_000 + "\n"), ["give only", "more sequence"]),
    "records of one base": Case("mlm", file("x.fa", ">a\nA\n" * 20), ["20 bases, 20 tokens", "1 sequences of 32"], True),
    "a line of 5 Mb": Case("mlm", file("x.fa", ">a\n" + GENOME * 1_700 + "\n"), ["1 species"], True),
    "NUL bytes": Case("mlm", file("x.fa", f">a\n{GENOME}\0\0\n"), ["x.fa: record 1 (a), position 3001: '\\x00'"]),
    "UTF-16": Case("tokenizer", file("x.fa", FASTA.encode("utf-16")), ["x.fa: line 1"]),
    "bytes of no text": Case("tokenizer", file("x.fa", b">a\n\xff\xfe" + GENOME.encode()), ["x.fa: not a text file (byte 0xff"]),
    "a missing file": Case("tokenizer", given(train_file="absent.fa"), ["absent.fa: no such file"]),
    "a folder without sequences": Case("mlm", a_folder, ["empty: no such file, and no folder or glob of files with"]),
    "a link to nothing": Case("tokenizer", lambda folder: {"train_file": (folder / "x.fa").symlink_to("absent") or folder / "x.fa"}, ["x.fa: no such file"]),
    "a table for pretraining without its column": Case("mlm", file("x.csv", rows(header="dna,label")), ["x.csv: no columns are named 'sequence'", "--sequence_column"]),
    # labelled tables
    "a header that is missing": Case("gue", table("train", rows().split("\n", 1)[1]), ["train.csv: no columns are named 'sequence'", "the header must be"]),
    "wrong column names": Case("gue", table("train", rows(header="seq,class")), ["train.csv: no columns are named 'sequence'", "'seq', 'class'"]),
    "no labels": Case("gue", table("train", rows(header="sequence,other")), ["no columns are named 'label'"]),
    "labels missing in rows": Case("gue", table("train", rows(lambda n, s, c: f"{s},{'' if n == 7 else c}")), ["train.csv: record 7: no label"]),
    "labels that train has not": Case("gue", table("test", rows(lambda n, s, c: f"{s},{2 if n == 3 else c}")), ["test.csv: record 3: train has no label '2'"]),
    "fractions for classes": Case("gue", table("train", rows(lambda n, s, c: f"{s},{c}.5")), ["train.csv: record 1: the label", "--problem_type regression"]),
    "one class alone": Case("gue", table("train", rows(lambda n, s, c: f"{s},1")), ["train.csv: all rows have the label '1'"]),
    "words for numbers": Case("gue", table("train", rows(lambda n, s, c: f"{s},high"), problem_type="regression"), ["train.csv: record 1: the label 'high' is not a number"]),
    "empty sequences": Case("gue", table("train", rows(lambda n, s, c: f"{'' if n == 4 else s},{c}")), ["train.csv: record 4: column 'sequence' is empty"]),
    "protein in a table": Case("gue", table("dev", rows(lambda n, s, c: f"{'MKVL' if n == 2 else s},{c}")), ["dev.csv: record 2", "position 4: 'L'"]),
    "a quote that does not close": Case("gue", table("train", rows(lambda n, s, c: f'{chr(34) * (n == 5)}{s},{c}')), ["train.csv"]),
    "quoted values": Case("gue", table("train", rows(lambda n, s, c: f'"{s}","{c}"')), ["1 to do"], True),
    "semicolons": Case("gue", table("train", rows().replace(",", ";")), ["train.csv: no columns are named 'sequence', of 1: 'sequence;label'"]),
    "tabs in a csv": Case("gue", table("train", rows().replace(",", "\t")), ["train.csv: no columns are named 'sequence', of 1"]),
    "a BOM": Case("gue", table("train", rows().encode("utf-8-sig")), ["1 to do"], True),
    "duplicate rows": Case("gue", table("train", rows() + rows().split("\n", 1)[1]), ["Warning: task: 40 rows of train stand in it before"], True),
    "rows too long": Case("gue", table("train", rows(lambda n, s, c: f"{s},{c}" + ",more" * (n == 6))), ["train.csv"]),
    "an empty table": Case("gue", table("dev", ""), ["dev.csv: the file is empty"]),
    "a header alone": Case("gue", table("dev", "sequence,label\n"), ["dev.csv: no records in it"]),
    "a split that is missing": Case("gue", lambda folder: (folder / "task" / "test.csv").unlink(), ["no test.csv"]),
    # models
    "heads that do not divide": Case("mlm", base(config(num_attention_heads=5)), ["base", "multiple of num_attention_heads"]),
    "a tokenizer larger than the model": Case("mlm", base(more_tokens), ["the tokenizer has 4097 tokens", "4096"]),
    "a tokenizer larger than the model to fine-tune": Case("gue", base(more_tokens), ["the tokenizer has 4097 tokens", "4096"]),
    "weights of other shapes": Case("mlm", base(config(hidden_size=64)), ["base", "of its weights have another shape", "not of one model"]),
    "weights of other shapes to fine-tune": Case("gue", base(config(hidden_size=64)), ["base", "of its weights have another shape"]),
    "more layers than weights": Case("mlm", base(config(num_hidden_layers=3)), ["base lacks", "encoder.layer.2."]),
    "fewer layers than weights": Case("mlm", base(config(num_hidden_layers=1)), ["base: config.json wants fewer layers", "encoder.layer.1."]),
    "fewer layers than weights to fine-tune": Case("gue", base(config(num_hidden_layers=1)), ["base: config.json wants fewer layers"]),
    "safetensors cut": Case("mlm", base(cut("model.safetensors")), ["base: its safetensors are damaged", "get them again"]),
    "safetensors cut to fine-tune": Case("gue", base(cut("model.safetensors")), ["base: its safetensors are damaged"]),
    "safetensors empty": Case("gue", base(cut("model.safetensors", 0)), ["base"]),
    "weights that are code": Case("mlm", base(pickled), ["base: its weights are a pickle", "refused, and not run"]),
    "weights that are code in an old pickle": Case("gue", base(old_pickled), ["base: its weights are a pickle"]),
    "no weights": Case("mlm", base(lambda folder: (folder / "model.safetensors").unlink()), ["base"]),
    "another model_type": Case("mlm", base(config(model_type="nonsense", auto_map={})), ["base", "nonsense"]),
    "config.json cut": Case("gue", base(cut("config.json")), ["base"]),
    "config.json of a list": Case("mlm", base(lambda folder: (folder / "config.json").write_text("[1]")), ["base"]),
    "tokenizer.json cut": Case("gue", base(cut("tokenizer.json")), ["base"]),
    "no tokenizer": Case("mlm", base(lambda folder: [path.unlink() for path in folder.glob("tokenizer*")]), ["base"]),
    "a release cut": Case("convert", released(cut("pytorch_model.bin")), ["pytorch_model.bin: damaged"]),
    "a release that is code": Case("convert", released(lambda folder: torch.save(Code(), folder / "pytorch_model.bin")), ["refused, and not run"]),
    "a release of another model": Case("convert", released(config(model_type="roberta")), ["config.json: model_type is 'roberta'"]),
    "no release": Case("convert", given(), ["released: neither a folder nor a name on the Hub"]),
    # sizes, rates, folders
    "a size of zero": Case("mlm", given(config_overrides="hidden_size=0"), ["hidden_size"]),
    "no heads": Case("gue", given(config_name=ROOT / "configs" / "tiny.json", model_name_or_path=None, config_overrides="num_attention_heads=0"), ["num_attention_heads"]),
    "a batch of zero": Case("gue", given(total_train_batch_size=0), ["--total_train_batch_size must be greater than 0"]),
    "a negative rate": Case("mlm", given(learning_rate=-1), ["--learning_rate must be greater than 0, is -1.0"]),
    "more warm-up than steps": Case("gue", given(num_warmup_steps=3), ["--num_warmup_steps 3 are more than the 1 steps"]),
    "a vocabulary of zero": Case("tokenizer", given(vocab_size=0), ["--vocab_size 0 is too small"]),
    "an output that is a file": Case("tokenizer", lambda folder: (folder / "out").write_text("mine") and {}, ["out cannot be made"]),
    "an output that is a file, of a run": Case("mlm", lambda folder: (folder / "out").write_text("mine") and {}, ["--output_dir", "out is no folder"]),
    "an output that is a file, of runs": Case("gue", lambda folder: (folder / "out").write_text("mine") and {}, ["--output_dir", "out is no folder"]),
    "an output with a vocabulary": Case("tokenizer", folder_with("tokenizer.json", "{}"), ["out holds a tokenizer already"]),
    "an output with a model": Case("mlm", folder_with("config.json", "{}"), ["out holds another run or a model already"]),
    "an output with another run": Case("mlm", folder_with("arguments.json", '{"seed": 1}'), ["out is of another run", "--adam_beta1 was None, is 0.9", " more)"]),
    "an output with what is no run's": Case("mlm", folder_with("metrics.jsonl", ""), ["out holds another run"]),
    "an output with something, of the converter": Case("convert", lambda folder: folder_with("notes.txt", "mine")(folder) or (release(folder / "released") and {}), ["out: is there, and not an empty folder"]),
}  # fmt: skip


# what is done to a model's folder; what from_pretrained, and the handler, then say
MODELS = {
    "heads that do not divide": (config(num_attention_heads=5), "hidden_size (32) must be a multiple of num_attention_heads (5)"),
    "a size of zero": (config(hidden_size=0), "hidden_size must be a whole number of at least 1, got 0"),
    "a size that is a word": (config(hidden_size="big"), "hidden_size must be a whole number of at least 1, got 'big'"),
    "a negative rate": (config(hidden_dropout_prob=-1), "hidden_dropout_prob must be from 0 to 1, got -1"),
    "a negative epsilon": (config(layer_norm_eps=-1), "layer_norm_eps must be above 0, got -1"),
    "padding beyond the vocabulary": (config(pad_token_id=4096), "pad_token_id must be from 0 to vocab_size - 1, got 4096"),
    "an activation that there is not": (config(hidden_act="nope"), "hidden_act must be one of gelu"),
    "weights of other shapes": (config(hidden_size=64), "ignore_mismatched_sizes"),
    "another vocabulary": (config(vocab_size=100), "ignore_mismatched_sizes"),
    "safetensors cut": (cut("model.safetensors"), "incomplete metadata, file not fully covered"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "weights that are code": (pickled, "Weights only load failed"),
    "weights that are code in an old pickle": (old_pickled, "Weights only load failed"),
    "another model_type": (config(model_type="nonsense", auto_map={}), "model type `nonsense`"),
    "config.json cut": (cut("config.json"), "config.json' is not a valid JSON file"),
    "config.json of a list": (lambda folder: (folder / "config.json").write_text("[1]"), "Should have a `model_type` key"),
}  # fmt: skip
SERVED = {  # from_pretrained warns of the first two, as transformers' models do
    "more layers than weights": (config(num_hidden_layers=3), "the weights are not, or not all, those of config.json"),
    "fewer layers than weights": (
        config(num_hidden_layers=1),
        "the weights are not, or not all, those of config.json",
    ),
    "more tokens than the model": (more_tokens, "the tokenizer has 4097 tokens, which is more than the model's"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "okenizer"),
    "no task": (config(architectures=["DNABert2ForTokenClassification"]), "only *ForMaskedLM"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Good ones: sequences, a task, a base."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "good.fa").write_text(FASTA)
    gue_runs.write_task(folder / "task")
    gue_runs.save_base(folder / "base")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def start(script: str, folder: Path, options: dict, monkeypatch):
    """Runs a script in this process."""
    out = folder / "out"
    if script == "mlm":
        options = {"per_device_train_batch_size": 2, "total_train_batch_size": 2, "max_train_steps": 1} | options
        options = {"train_file": folder / "good.fa", "validation_split_percentage": 0} | options
        options |= {"num_warmup_steps": 0} | {
            key: value for key, value in options.items() if key == "num_warmup_steps"
        }
        mlm_runs.run_here(monkeypatch, *mlm_runs.arguments(folder / "corpus", out, **options))
    elif script == "gue":
        options = {"model_name_or_path": folder / "base", "data_dir": folder / "task", "output_dir": out} | options
        options = {"max_train_steps": 1, "num_warmup_steps": 0} | options
        gue_runs.run_here(monkeypatch, *gue_runs.command(**options))
    else:
        options = {"train_file": folder / "good.fa", "output_dir": out, "vocab_size": 12} | options
        parts = [
            str(part) for name, value in options.items() for part in (f"--{name}", value)[: 1 + (value is not True)]
        ]
        if script == "convert":
            parts = [str(folder / "released"), str(out), *["--debug"] * ("debug" in options)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, *parts])
            run_script((train_tokenizer if script == "tokenizer" else convert).main)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_ends_in_one_line_or_goes_on_with_a_warning(case, inputs, tmp_path, monkeypatch, capsys, caplog):
    folder = shutil.copytree(inputs, tmp_path / "inputs")
    monkeypatch.chdir(folder)
    options = case.spoil(folder) or {}
    before = contents(folder)
    if case.goes_on:
        start(case.script, folder, options, monkeypatch)
        said = capsys.readouterr().out + caplog.text
    else:
        with pytest.raises(SystemExit) as error:
            start(case.script, folder, options, monkeypatch)
        said = error.value.code
        assert (
            isinstance(said, str) and said.startswith("error: ") and "\n" not in said and len(said) < 800
        )  # and the path of a temporary folder
        assert "Traceback" not in capsys.readouterr().err
        assert not list(folder.glob("out/**/model.safetensors")) and not list(folder.glob("out/**/*.tmp*"))
    for part in case.told:
        assert part in said
    assert not (folder / "was_run").exists()
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("spoil, told", (MODELS | SERVED).values(), ids=MODELS | SERVED)
def test_a_model_that_is_none_is_not_loaded(inputs, tmp_path, monkeypatch, request, spoil, told):
    folder = shutil.copytree(inputs / "base", tmp_path / "base")
    shutil.copy(ROOT / "handler.py", folder)
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    if any(change is spoil for change, _ in MODELS.values()):
        with pytest.raises((OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError)) as error:
            AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        assert told in str(error.value)
    with pytest.raises((OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError)) as error:
        serve(folder)
    assert told in str(error.value) and not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("script", ["tokenizer", "mlm", "gue", "convert"])
def test_debug_shows_the_trace(inputs, tmp_path, monkeypatch, script):
    folder = shutil.copytree(inputs, tmp_path / "inputs")
    monkeypatch.chdir(folder)
    options = {"train_file": "absent.fa"} if script in ("tokenizer", "mlm") else {"data_dir": "absent"}
    with pytest.raises(UsageError):
        start(script, folder, options | {"debug": True}, monkeypatch)


def test_a_process_of_its_own_ends_in_one_line(tmp_path):
    """Of the other scripts: test_run_mlm_refusals.py, test_train_tokenizer.py, test_convert.py."""
    command = [sys.executable, ROOT / "run_gue.py", "--model_name_or_path", ".", "--output_dir", tmp_path / "out"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [*map(str, command), "--data_dir", "absent"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.splitlines()[-1] == "error: --data_dir absent: no such folder" and "Traceback" not in done.stderr
    )
