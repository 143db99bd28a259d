"""New models from sizes, pretrained ones from folders, and every refusal of what would train in silence on nonsense.

pytest tests/test_loading.py
"""

import json
import shutil

import pytest
import torch
from models import CODE_FILES
from safetensors.torch import load_file, save_file

from dnabert2 import loading
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_model, load_tokenizer, new_model


TINY, MINI, LARGE = (ROOT / "configs" / f"{name}.json" for name in ("tiny", "mini", "117M"))
SMALL = "hidden_size=32,num_attention_heads=2,intermediate_size=48"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


@pytest.fixture
def saved(tokenizer, tmp_path):
    """A small model and the folder it is saved in."""
    torch.manual_seed(0)
    model = new_model(TINY, tokenizer, SMALL)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_new_model_has_the_sizes_of_its_file_and_the_tokenizers_vocabulary(tokenizer):
    config = new_model(TINY, tokenizer).config
    sizes = json.loads(TINY.read_text())
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert config.vocab_size == len(tokenizer) == 4096 and config.pad_token_id == tokenizer.pad_token_id == 3


def test_overrides_win_over_the_file(tokenizer):
    overrides = "num_hidden_layers=1,hidden_dropout_prob=0.25,low_precision_layernorm=true"
    model = new_model(TINY, tokenizer, overrides)
    assert model.config.num_hidden_layers == len(model.base_model.encoder.layer) == 1
    assert model.config.hidden_dropout_prob == 0.25 and model.config.low_precision_layernorm is True
    assert model.config.hidden_size == 128
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert 0.25 in dropouts and 0.1 not in dropouts


def test_the_117m_has_117_074_176_parameters(tokenizer):
    with torch.device("meta"):
        model = new_model(LARGE, tokenizer)
    assert model.num_parameters() == 117_074_176


def test_mini_is_the_root_configuration(tokenizer):
    sizes, root = json.loads(MINI.read_text()), json.loads((ROOT / "config.json").read_text())
    assert sizes == {name: root[name] for name in sizes}
    with torch.device("meta"):
        mini, default = new_model(MINI, tokenizer), new_model(ROOT, tokenizer)
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (mini, default)]
    assert shapes[0] == shapes[1]
    assert mini.config.hidden_size // mini.config.num_attention_heads == 64
    assert 2 * mini.num_parameters() <= 32e6  # bytes in bf16


def test_code_and_the_full_auto_map_travel_with_a_saved_model(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == json.loads((ROOT / "config.json").read_text())["auto_map"]
    assert all((folder / file).read_bytes() == (ROOT / file).read_bytes() for file in CODE_FILES)


@pytest.mark.parametrize(
    ("config", "overrides", "told"),
    [
        ("absent.json", None, "absent.json"),
        ("absent_folder", None, "absent_folder"),
        ('{"hidden_size": ', None, "sizes.json"),
        ('{"hiden_size": 64}', None, "sizes.json: a configuration has no hiden_size"),
        ('{"hidden_size": 65}', None, "hidden_size (65) must be a multiple"),
        ("{}", "hiden_size=64", "--config_overrides hiden_size=64"),
        ("{}", "hidden_size=big", "--config_overrides hidden_size=big"),
        ("{}", "hidden_size", "--config_overrides hidden_size"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(tokenizer, tmp_path, config, overrides, told):
    name = tmp_path / config
    if config.startswith("{"):
        name = tmp_path / "sizes.json"
        name.write_text(config)
    with pytest.raises(UsageError) as error:
        new_model(name, tokenizer, overrides)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_saved_model_is_loaded_in_every_weight(saved, tokenizer):
    model, folder = saved
    again = load_model(folder, tokenizer)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_bf16_checkpoint_is_loaded_in_float32(saved, tokenizer):
    model, folder = saved
    model.bfloat16().save_pretrained(folder)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load_model(folder, tokenizer).parameters()} == {torch.float32}


def test_a_tokenizer_larger_than_the_model_is_refused(saved, tokenizer, tmp_path):
    _, folder = saved
    larger = load_tokenizer(ROOT / "bpe_tokenizer")
    larger.add_tokens(["<new>"])
    with pytest.raises(UsageError, match=r"the tokenizer has 4097 tokens and .* only 4096"):
        load_model(folder, larger)


def test_a_checkpoint_that_lacks_weights_is_refused(saved, tokenizer):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    name = "cls.predictions.transform.dense.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"lacks 1 of this model's weights, as {name}"):
        load_model(folder, tokenizer)


def test_a_folder_without_a_model_or_tokenizer_is_refused(saved, tokenizer, tmp_path):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    for load in (lambda: load_model(folder, tokenizer), lambda: load_model(tmp_path / "absent", tokenizer)):
        with pytest.raises(UsageError) as error:
            load()
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="absent"):
        load_tokenizer(tmp_path / "absent")


def test_code_of_the_hub_runs_only_when_trusted(tmp_path):
    assert loading.is_trusted(tmp_path, False)
    assert not loading.is_trusted("somebody/model", False) and loading.is_trusted("somebody/model", True)


def test_code_of_an_untrusted_configuration_does_not_run(tokenizer, tmp_path, monkeypatch):
    config = {"model_type": "bert", "auto_map": {"AutoModelForMaskedLM": "evil.Model"}, "hidden_size": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    monkeypatch.setattr(loading, "is_trusted", lambda name_or_path, trust_remote_code: trust_remote_code)
    new_model(tmp_path, tokenizer)  # transformers' own BERT
    assert not (tmp_path / "ran").exists()


def test_the_roots_tokenizer_is_the_built_one(tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / file, tmp_path)
    root, built = load_tokenizer(tmp_path), load_tokenizer(ROOT / "bpe_tokenizer")
    assert root.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()
