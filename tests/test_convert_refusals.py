"""The converter on what is no release, or a spoilt one: refused by name, with nothing left behind or run.

pytest tests/test_convert_refusals.py
"""

import errno
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from released import (
    DECODER,
    RELEASED_CONFIG,
    SMALL,
    in_a_fresh_process,
    pooler_and_classifier,
    release,
    released_weights,
)
from safetensors.torch import save_file

from dnabert2.convert import convert
from dnabert2.errors import UsageError
from dnabert2.released_files import read_weights


@pytest.fixture(scope="module")
def good_release(tmp_path_factory):
    return release(tmp_path_factory.mktemp("small") / "DNABERT-2")


class Code:
    """What runs code when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "was_run"),)


def in_config(**values):
    def spoil(source):
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | values))

    return spoil


def in_weights(change):
    def spoil(source):
        weights = torch.load(source / "pytorch_model.bin", weights_only=True)
        change(weights)
        torch.save(weights, source / "pytorch_model.bin")

    return spoil


def in_tokenizer(change):
    def spoil(source):
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        change(tokenizer)
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))

    return spoil


def as_bin(value):
    return lambda source: torch.save(value(source) if callable(value) else value, source / "pytorch_model.bin")


def cut(name, share):
    return lambda source: (source / name).write_bytes(
        (source / name).read_bytes()[: int(share * (source / name).stat().st_size)]
    )


def as_bytes(name, content):
    return lambda source: (source / name).write_bytes(content)


def with_cut_safetensors(source):
    save_file(released_weights(RELEASED_CONFIG | SMALL) | {DECODER: torch.zeros(16, 24)}, source / "model.safetensors")
    cut("model.safetensors", 0.5)(source)


def old_pickle(source):
    with (source / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Code(source)}, file)


def as_classifier(weights, without="cls."):
    weights |= pooler_and_classifier(SMALL)
    for name in [name for name in weights if name.startswith("cls.") or without in name]:
        del weights[name]


LAYER = "bert.encoder.layer.1.mlp.wo.bias"
BAD_RELEASES = {  # what is done to a good one, and what the message must name
    "another model's type": (in_config(model_type="roberta"), ["config.json", "'roberta'"]),
    "this package's own": (in_config(model_type="dnabert2"), ["config.json", "load it as it is"]),
    "no config.json": (lambda source: (source / "config.json").unlink(), ["has no config.json"]),
    "config.json cut": (cut("config.json", 0.5), ["config.json: damaged"]),
    "config.json of a list": (as_bytes("config.json", b"[1]"), ["config.json: not a JSON object"]),
    "config.json of lists without end": (as_bytes("config.json", b"[" * 100_000), ["config.json: damaged"]),
    "config.json of other bytes": (as_bytes("config.json", b"\xff\xfe\0"), ["config.json: damaged"]),
    "heads that do not divide": (in_config(num_attention_heads=5), ["config.json", "multiple of num_attention_heads"]),
    "a size of zero": (in_config(num_attention_heads=0), ["config.json", "num_attention_heads"]),
    "a size that is a word": (in_config(hidden_size="big"), ["config.json", "hidden_size"]),
    "a rate that is a word": (in_config(hidden_dropout_prob="some"), ["config.json", "wrong type"]),
    "labels that are a list": (in_config(id2label=["a"]), ["config.json", "wrong type"]),
    "a monstrous size": (in_config(num_labels=10**9), ["config.json", "num_labels is 1000000000"]),
    "a monstrous depth": (in_config(num_hidden_layers=10**6), ["num_hidden_layers is 2", "says 1000000"]),
    "another vocabulary size": (in_config(vocab_size=17), ["vocab_size is 16", "says 17"]),
    "another hidden size": (in_config(hidden_size=48), ["hidden_size is 24", "says 48"]),
    "another inner size": (in_config(intermediate_size=33), ["another shape", "[64, 24], not [66, 24]"]),
    "no weights": (
        lambda source: (source / "pytorch_model.bin").unlink(),
        ["has no model.safetensors and no pytorch_model.bin"],
    ),
    "a bin cut": (cut("pytorch_model.bin", 0.7), ["pytorch_model.bin: damaged"]),
    "an empty bin": (as_bytes("pytorch_model.bin", b""), ["pytorch_model.bin: damaged"]),
    "a pointer of git-lfs": (as_bytes("pytorch_model.bin", b"version https://git"), ["pytorch_model.bin: damaged"]),
    "safetensors cut": (with_cut_safetensors, ["model.safetensors: damaged"]),
    "code in a bin": (as_bin(lambda source: {"a": torch.ones(3), "b": Code(source)}), ["not run", "mkdir"]),
    "code in an old pickle": (old_pickle, ["pytorch_model.bin"]),
    "a pickled module": (as_bin(lambda _: torch.nn.Linear(2, 2)), ["refused", "torch.nn.modules.linear.Linear"]),
    "a tensor alone": (as_bin(torch.ones(3)), ["not tensors by name"]),
    "a trainer's checkpoint": (as_bin({"state_dict": {"a": torch.ones(3)}, "epoch": 3}), ["not tensors by name"]),
    "whole numbers": (in_weights(lambda weights: weights.update({LAYER: torch.ones(24, dtype=torch.long)})), [LAYER]),
    "NaN": (in_weights(lambda weights: weights[LAYER].fill_(torch.nan)), [LAYER, "NaN"]),
    "a tensor too few": (in_weights(lambda weights: weights.pop(LAYER)), ["1 are missing", LAYER]),
    "a tensor too many": (in_weights(lambda weights: weights.update(extra=torch.ones(1))), ["1 have no", "extra"]),
    "many too many": (
        in_weights(lambda weights: weights.update({f"bert.position.{n}": torch.ones(1) for n in range(9)})),
        ["9 have no place", "bert.position.3", "…"],
    ),
    "one tensor twice": (
        in_weights(lambda weights: weights.update({LAYER.removeprefix("bert."): torch.ones(24)})),
        ["1 have no place", "encoder.layer.1.mlp.wo.bias"],
    ),
    "another tensor's shape": (
        in_weights(lambda weights: weights.update({LAYER: torch.ones(25)})),
        [f"{LAYER} [25], not [24]"],
    ),
    "weights of BERT": (
        as_bin({"bert.encoder.layer.0.attention.self.query.weight": torch.ones(24, 24)}),
        ["not DNABERT-2's weights"],
    ),
    "a decoder of its own": (
        in_weights(lambda weights: weights.update({DECODER: torch.ones(16, 24)})),
        [DECODER, "differs"],
    ),
    "two heads": (in_weights(lambda weights: weights.update(pooler_and_classifier(SMALL))), ["two heads"]),
    "half a pooler": (
        in_weights(lambda weights: weights.update({"bert.pooler.dense.bias": torch.ones(24)})),
        ["1 are missing", "bert.pooler.dense.weight"],
    ),
    "a classifier without a pooler": (
        in_weights(lambda weights: as_classifier(weights, without="pooler.")),
        ["2 are missing", "bert.pooler.dense.bias"],
    ),
    "a classifier of other labels": (in_weights(as_classifier), ["classifier.weight [3, 24], not [2, 24]"]),
    "no tokenizer.json": (lambda source: (source / "tokenizer.json").unlink(), ["has no tokenizer.json"]),
    "tokenizer.json cut": (cut("tokenizer.json", 0.5), ["tokenizer.json: damaged"]),
    "a tokenizer of nothing": (as_bytes("tokenizer.json", b"{}"), ["tokenizer.json: holds no vocabulary"]),
    "a tokenizer of another model": (
        in_tokenizer(lambda tokenizer: (tokenizer["added_tokens"].pop(3), tokenizer["model"]["vocab"].pop("[PAD]"))),
        ["tokenizer.json: has no [PAD]"],
    ),
    "a tokenizer too large": (
        in_tokenizer(lambda tokenizer: tokenizer["model"]["vocab"].update(ACGT=16)),
        ["tokenizer.json: has ids up to 16", "vocab_size 16"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil, named", BAD_RELEASES.values(), ids=BAD_RELEASES)
def test_a_bad_release_is_refused_by_name_and_leaves_nothing(tmp_path, spoil, named):
    source = release(tmp_path / "released")
    spoil(source)
    with pytest.raises(UsageError) as refused:
        convert(str(source), tmp_path / "output")
    for part in named:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (source / "was_run").exists()
    assert os.listdir(tmp_path) == ["released"]


@pytest.mark.parametrize("kind", ["bin", "old bin", "safetensors"])
def test_weights_with_wrong_bytes_are_read_or_refused(tmp_path, kind):
    file, weights = tmp_path / f"weights.{kind.split()[-1]}", {f"layer.{n}": torch.ones(4, 3) for n in range(4)}
    if kind == "safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "bin")
    draw, content, refused = random.Random(0), file.read_bytes(), 0
    for _ in range(200):
        wrong = bytearray(content)
        for _ in range(draw.randint(1, 5)):
            wrong[draw.randrange(draw.choice([200, len(wrong)]))] = draw.randrange(256)
        file.write_bytes(wrong)
        try:
            read_weights(file)
        except UsageError as error:
            refused += str(error).startswith(str(file))
    assert refused > 20


@pytest.mark.parametrize("source", ["none", "a/b/c", "../none", "", "user/na me"])
def test_a_source_that_is_neither_folder_nor_name_is_refused(tmp_path, source):
    with pytest.raises(UsageError, match="neither a folder nor a name on the Hub"):
        convert(source, tmp_path / "output")


def test_a_source_that_is_a_file_is_refused(good_release, tmp_path):
    with pytest.raises(UsageError, match="neither a folder"):
        convert(str(good_release / "pytorch_model.bin"), tmp_path / "output")


def test_a_revision_of_a_folder_is_refused(good_release, tmp_path):
    with pytest.raises(UsageError, match="--revision v1 is of a repository on the Hub"):
        convert(str(good_release), tmp_path / "output", "v1")


def test_an_output_that_holds_something_is_left_as_it_is(good_release, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match="not an empty folder"):
            convert(str(good_release), output)
    assert (tmp_path / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["notes.txt"]


def test_an_output_that_cannot_be_written_is_an_error_that_names_it(good_release, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/output"):
        convert(str(good_release), tmp_path / "file" / "output")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dnabert2.convert.card", fail)  # when all else is written
    with pytest.raises(UsageError, match="No space left on device"):
        convert(str(good_release), tmp_path / "output")
    assert os.listdir(tmp_path) == ["file"]


def test_the_command_ends_with_one_line_and_no_trace(tmp_path):
    source = release(tmp_path / "released", {"a": torch.ones(3), "b": Code(tmp_path)})
    done = in_a_fresh_process("dnabert2.convert", source, tmp_path / "output", home=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {source}/pytorch_model.bin: refused") and done.stderr.count("\n") == 1
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "output").exists()
