"""Folders as they are to lie on the Hub."""

import json

import gue_runs
import pytest
import torch
from models import ROOT

from dnabert2 import releases
from dnabert2.errors import UsageError


def test_an_adapter_names_a_base_that_others_have(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "refused").mkdir()
    with pytest.raises(UsageError, match=r"which nobody else has: push that first .*--base_model REPO"):
        releases.assemble(folder, tmp_path / "refused")
    (tmp_path / "release").mkdir()
    releases.assemble(folder, tmp_path / "release", "user/base")
    config = json.loads((tmp_path / "release" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "user/base"
    # an endpoint has no peft, and the handler loads whole models
    assert not {path.name for path in (tmp_path / "release").iterdir()} & set(releases.SERVING)


def test_a_model_loaded_from_the_hub_names_its_own_code(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    whole = config["auto_map"]
    config["auto_map"] = {key: f"user/base--{name}" for key, name in whole.items() if key != "AutoModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "release").mkdir()
    releases.assemble(folder, tmp_path / "release")
    assert json.loads((tmp_path / "release" / "config.json").read_text())["auto_map"] == whole


def test_a_model_brings_what_an_endpoint_needs_its_own_first(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    (folder / "requirements.txt").write_text("mine")
    (tmp_path / "release").mkdir()
    releases.assemble(folder, tmp_path / "release")
    assert (tmp_path / "release" / "handler.py").read_bytes() == (ROOT / "handler.py").read_bytes()
    assert (tmp_path / "release" / "requirements.txt").read_text() == "mine"


def test_a_tokenizer_does_not_say_where_it_was_read(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    assert json.loads((folder / "tokenizer_config.json").read_text())["local_files_only"]
    (tmp_path / "release").mkdir()
    releases.assemble(folder, tmp_path / "release")
    config = json.loads((tmp_path / "release" / "tokenizer_config.json").read_text())
    assert config["mask_token"] == "[MASK]" and not {"is_local", "local_files_only"} & config.keys()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("model.safetensors", None, "model.safetensors: its safetensors are damaged"),
        ("config.json", "{}", "config.json: has no model_type"),
        ("config.json", '{"model_', "config.json: damaged"),
        ("tokenizer.json", '{"version"', "tokenizer.json: damaged"),
    ],
)
def test_what_is_damaged_is_refused_by_name(tmp_path, name, content, message):
    folder = gue_runs.save_base(tmp_path / "run")
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content.encode())
    (tmp_path / "release").mkdir()
    with pytest.raises(UsageError, match=message) as error:
        releases.assemble(folder, tmp_path / "release")
    assert "remove" not in str(error.value) and not [*(tmp_path / "release").iterdir()]


def test_pickled_weights_are_no_model(tmp_path):
    folder = gue_runs.save_base(tmp_path / "run")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="lacks safetensors"):
        releases.assemble(folder, tmp_path)
