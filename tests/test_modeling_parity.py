"""The model equals the released code: hidden states, logits, losses and gradients, from the checkpoint it released."""

import pytest
import torch
from models import BACK_ENDS, FORWARD_BACK_ENDS, gradients, larger_case, load, tiny_case, worst
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


CASES = ("tiny", "a_h64_heads4_rightpad", "b_h96_heads12_mixedpad", "c_h64_heads4_longer_than_alibi")
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The tiny case always, the larger ones where the fixture `reference` finds them."""
    return (
        tiny_case() if request.param == "tiny" else larger_case(request.getfixturevalue("reference") / request.param)
    )


@pytest.fixture(scope="module")
def case_folder(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    case.save(folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
@pytest.mark.usefixtures("no_grad")
class TestEqualsTheRelease:
    def test_in_every_layer_with_padding_exactly_zero(self, case, case_folder, attention, dtype):
        model = load(AutoModel, case_folder, attention, dtype=dtype)
        outputs = model(**case.inputs, output_hidden_states=True)
        layers = [case.outputs[f"layer_{layer}_output"] for layer in range(model.config.num_hidden_layers)]
        if "embedding_output" in case.outputs:  # at tokens: a back end may leave out what stands at padding
            embeddings = [outputs.hidden_states[0], case.outputs["embedding_output"]]
            assert worst(*(tensor[~case.padding] for tensor in embeddings)) < TOLERANCE[dtype]
        for ours, released in zip(outputs.hidden_states[1:], layers, strict=True):
            assert worst(ours, released) < TOLERANCE[dtype]
        for hidden_states in (outputs.last_hidden_state, *outputs.hidden_states[1:]):
            assert not hidden_states[case.padding].any()
        assert worst(outputs.last_hidden_state, case.outputs["last_hidden_state"]) < TOLERANCE[dtype]

    def test_in_the_pooled_output(self, case, case_folder, attention, dtype):
        pooled = load(AutoModel, case_folder, attention, dtype=dtype)(**case.inputs).pooler_output
        assert worst(pooled, case.outputs["pooled_output"]) < TOLERANCE[dtype]

    def test_in_mlm_logits_and_loss(self, case, case_folder, attention, dtype):
        model = load(AutoModelForMaskedLM, case_folder, attention, dtype=dtype)
        outputs = model(**case.inputs, labels=case.mlm_labels)
        if "mlm_logits" in case.outputs:
            logits, released, tolerance = outputs.logits, case.outputs["mlm_logits"], TOLERANCE[dtype]
        else:  # at the labels that the release knows, all but 0, and stored in float32
            logits, released = outputs.logits[case.mlm_labels > 0], case.outputs["mlm_logits_at_labels"]
            tolerance = max(TOLERANCE[dtype], 1e-6)
        assert worst(logits, released) < tolerance * released.abs().max()
        assert worst(outputs.loss, case.mlm_loss_of_all_labels) < TOLERANCE[dtype]

    @pytest.mark.parametrize("case", ["a_h64_heads4_rightpad"], indirect=True)  # the others have no label 0
    def test_in_mlm_loss_without_the_label_0_that_it_dropped(self, case, case_folder, attention, dtype):
        model = load(AutoModelForMaskedLM, case_folder, attention, dtype=dtype)
        assert (case.mlm_labels == 0).any()
        labels = case.mlm_labels.masked_fill(case.mlm_labels == 0, -100)
        assert worst(model(**case.inputs, labels=labels).loss, case.outputs["mlm_loss"]) < TOLERANCE[dtype]

    def test_in_classification_logits_and_loss(self, case, case_folder, attention, dtype):
        model = load(AutoModelForSequenceClassification, case_folder, attention, dtype=dtype)
        outputs = model(**case.inputs, labels=case.cls_labels)
        assert worst(outputs.logits, case.outputs["cls_logits"]) < TOLERANCE[dtype]
        assert worst(outputs.loss, case.outputs["cls_loss"]) < TOLERANCE[dtype]


def mlm_gradients(case, folder, attention, dtype):
    model = load(AutoModelForMaskedLM, folder, attention, dtype=dtype)
    model(**case.inputs, labels=case.mlm_labels).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", BACK_ENDS)
def test_every_gradient_equals_the_release(attention, dtype, tmp_path):
    case = tiny_case()
    case.save(tmp_path)
    ours = mlm_gradients(case, tmp_path, attention, dtype)
    assert set(ours) == set(case.gradients)
    for name, gradient in ours.items():
        assert worst(gradient, case.gradients[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_both_back_ends_are_equal(case, case_folder, dtype):
    eager, sdpa = (mlm_gradients(case, case_folder, attention, dtype) for attention in BACK_ENDS)
    for name, gradient in eager.items():
        assert worst(sdpa[name], gradient) < TOLERANCE[dtype], name


def test_the_released_checkpoint_loads_with_new_heads_alone_missing(tmp_path):
    case = tiny_case()
    case.weights = {
        key: value for key, value in case.weights.items() if "pooler" not in key and "classifier" not in key
    }
    case.save(tmp_path)
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    missing = {
        AutoModelForMaskedLM: set(),
        AutoModel: {key.removeprefix("bert.") for key in pooler},
        AutoModelForSequenceClassification: pooler | {"classifier.weight", "classifier.bias"},
        AutoModelForTokenClassification: {"classifier.weight", "classifier.bias"},
    }
    for auto_class, expected in missing.items():
        _, info = load(auto_class, tmp_path, output_loading_info=True)
        assert info["missing_keys"] == expected
        assert all(key.startswith("cls.") for key in info["unexpected_keys"])
        assert auto_class is not AutoModelForMaskedLM or not info["unexpected_keys"]
