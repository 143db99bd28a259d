"""The configuration: defaults, the released config.json, refusals, round trips, and the root config.json."""

import json

import pytest
import torch
from models import CODE_FILES, ROOT, build, make_config, tiny_case, tiny_config
from transformers import AutoConfig, AutoModelForMaskedLM


AUTO_MAP = {
    "AutoConfig": "configuration_dnabert2.DNABert2Config",
    "AutoModel": "modeling_dnabert2.DNABert2Model",
    "AutoModelForMaskedLM": "modeling_dnabert2.DNABert2ForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_dnabert2.DNABert2ForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_dnabert2.DNABert2ForTokenClassification",
}
LARGER_CASES = ("a_h64_heads4_rightpad", "b_h96_heads12_mixedpad", "c_h64_heads4_longer_than_alibi")


def test_defaults_are_the_117m_model():
    config = make_config()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (4096, 768, 3072)
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 12)
    assert config.layer_norm_eps == 1e-12 and config.hidden_act == "gelu"
    assert config.hidden_dropout_prob == 0.1 and config.attention_probs_dropout_prob == 0.0


def test_model_type_is_our_own():
    assert make_config().model_type == "dnabert2"


def test_what_the_base_class_lacks_is_set():
    config = make_config()
    assert config.pad_token_id == 3
    assert config.tie_word_embeddings is True


def meta_model(config):
    with torch.device("meta"):
        return build(AutoModelForMaskedLM, config=config)


def test_117m_has_117_074_176_parameters():
    assert sum(parameter.numel() for parameter in meta_model(make_config()).parameters()) == 117_074_176


def test_117m_has_the_released_names_and_shapes(reference):
    released = json.loads((reference / "param_shapes_117M_mlm.json").read_text())
    ours = {name: list(tensor.shape) for name, tensor in meta_model(make_config()).state_dict().items()}
    assert ours == released


class TestRootConfig:
    def test_is_the_mini_with_head_dimension_64(self):
        config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
        assert config.hidden_size // config.num_attention_heads == 64
        assert config.architectures == ["DNABert2ForMaskedLM"]

    def test_fits_32_megabytes_in_bfloat16(self):
        model = meta_model(AutoConfig.from_pretrained(ROOT, trust_remote_code=True))
        assert 2 * sum(parameter.numel() for parameter in model.parameters()) <= 32e6

    def test_maps_five_auto_classes(self):
        assert json.loads((ROOT / "config.json").read_text())["auto_map"] == AUTO_MAP

    def test_names_code_files_that_are_there(self):
        assert all((ROOT / file).is_file() for file in CODE_FILES)


class TestReleasedConfig:
    def check(self, released, folder):
        file = folder / "config.json"
        file.write_text(json.dumps(released))
        config = type(make_config()).from_pretrained(folder)
        differing = {key: value for key, value in released.items() if getattr(config, key, None) != value}
        differing.pop("torch_dtype", None)  # transformers 5 calls it dtype
        differing.pop("use_cache", None)  # of decoders: the base class may drop it
        assert not differing
        assert config.model_type == "dnabert2" and config.tie_word_embeddings

    def test_of_the_tiny_case_loads_as_it_is(self, tmp_path):
        self.check(tiny_case().config, tmp_path)

    @pytest.mark.parametrize("name", LARGER_CASES)
    def test_of_the_larger_cases_loads_as_it_is(self, name, reference, tmp_path):
        self.check(json.loads((reference / name / "config.json").read_text()), tmp_path)


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "type_vocab_size",
)


@pytest.mark.parametrize("value", [0, -1, 64.0, "64", None])
@pytest.mark.parametrize("size", SIZES)
def test_a_bad_size_is_refused_by_name(size, value):
    with pytest.raises(ValueError, match=f"{size} must be a whole number of at least 1, got {value!r}"):
        tiny_config(**{size: value})


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"hidden_size \(30\) must be a multiple of num_attention_heads \(4\)"):
        tiny_config(hidden_size=30)


def test_a_size_changed_after_the_configuration_was_made_is_refused_by_the_model():
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True, hidden_size=100, num_attention_heads=7)
    with pytest.raises(ValueError, match=r"hidden_size \(100\) must be a multiple of num_attention_heads \(7\)"):
        build(config=config)


def test_saving_and_loading_keeps_every_value(tmp_path):
    values = {
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.5,
        "classifier_dropout": 0.125,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "low_precision_layernorm": True,
        "pad_token_id": 7,
        "tie_word_embeddings": False,
        "type_vocab_size": 3,
        "num_labels": 5,
        "problem_type": "regression",
        "alibi_starting_size": 512,  # without a meaning here, but kept
    }
    config = tiny_config(**values)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert {key: getattr(loaded, key) for key in values} == values
