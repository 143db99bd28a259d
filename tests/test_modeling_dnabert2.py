"""The model: equal to the released code, exact with any padding, in every precision, saved, compiled and trained."""

import copy
import logging
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies
from models import (
    CODE_FILES,
    TINY,
    build,
    draw_biases,
    encoder,
    four_masks,
    larger_case,
    load,
    masks,
    padded_batch,
    random_ids,
    remote_module,
    tiny_case,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)


BACK_ENDS = ("eager", "sdpa")
DTYPES = (torch.float32, torch.float64)
LOW_PRECISION = (torch.bfloat16, torch.float16)
AUTO_CLASSES = (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


def worst(actual, expected):
    """The largest absolute difference; NaN, which no bound admits, if there is a NaN."""
    return (actual.detach().double() - expected.detach().double()).abs().max().item()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# --- equal to the released code ----------------------------------------------------------------------------------


CASES = ("tiny", "a_h64_heads4_rightpad", "b_h96_heads12_mixedpad", "c_h64_heads4_longer_than_alibi")
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
@pytest.mark.parametrize("attention", BACK_ENDS)
class TestEqualsTheRelease:
    def test_in_every_layer_with_padding_exactly_zero(self, case, case_folder, attention, dtype):
        model = load(AutoModel, case_folder, attention, dtype=dtype)
        outputs = model(**case.inputs, output_hidden_states=True)
        layers = [case.outputs[f"layer_{layer}_output"] for layer in range(model.config.num_hidden_layers)]
        if "embedding_output" in case.outputs:
            layers.insert(0, case.outputs["embedding_output"])
        for ours, released in zip(reversed(outputs.hidden_states), reversed(layers), strict=False):
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

    def test_in_mlm_loss_without_the_label_0_that_it_dropped(self, case, case_folder, attention, dtype):
        model = load(AutoModelForMaskedLM, case_folder, attention, dtype=dtype)
        labels = case.mlm_labels.masked_fill(case.mlm_labels == 0, -100)
        assert worst(model(**case.inputs, labels=labels).loss, case.outputs["mlm_loss"]) < TOLERANCE[dtype]

    def test_in_classification_logits_and_loss(self, case, case_folder, attention, dtype):
        model = load(AutoModelForSequenceClassification, case_folder, attention, dtype=dtype)
        if "classifier.weight" not in case.weights:
            pytest.skip("this case has no classifier")
        outputs = model(**case.inputs, labels=case.cls_labels)
        assert worst(outputs.logits, case.outputs["cls_logits"]) < TOLERANCE[dtype]
        assert worst(outputs.loss, case.outputs["cls_loss"]) < TOLERANCE[dtype]


def mlm_gradients(case, folder, attention, dtype):
    model = load(AutoModelForMaskedLM, folder, attention, dtype=dtype)
    model(**case.inputs, labels=case.mlm_labels, sparse_prediction=True).loss.backward()
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


# --- ALiBi -------------------------------------------------------------------------------------------------------


class TestAlibi:
    @pytest.mark.parametrize(
        ("heads", "exponents"),
        [
            (1, [8]),
            (2, [4, 8]),
            (3, [4, 8, 2]),
            (4, [2, 4, 6, 8]),
            (6, [2, 4, 6, 8, 1, 3]),
            (8, [1, 2, 3, 4, 5, 6, 7, 8]),
            (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
            (16, [0.5 * head for head in range(1, 17)]),
        ],
    )
    def test_slopes(self, heads, exponents):
        model = build(AutoModel, num_attention_heads=heads, hidden_size=4 * heads, num_hidden_layers=1)
        expected = torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float32)
        assert torch.equal(encoder(model).alibi.slopes, expected)

    def test_bias_is_minus_slope_times_distance(self):
        alibi = encoder(build(AutoModel)).alibi
        bias = alibi(5)
        assert bias.shape == (1, 4, 5, 5)
        for head, slope in enumerate(alibi.slopes):
            assert bias[0, head, 1, 4] == bias[0, head, 4, 1] == -3 * slope


def assert_slopes_are_exact(model):
    expected = remote_module(model).alibi_slopes(model.config.num_attention_heads)
    for module in model.modules():
        if hasattr(module, "slopes"):
            assert module.slopes.dtype == torch.float32
            assert torch.equal(module.slopes, expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved MLM model of twelve heads, whose slopes 2^-0.5, ... are exact in no dtype."""
    folder = tmp_path_factory.mktemp("saved")
    build(num_attention_heads=12, hidden_size=48).save_pretrained(folder)
    return folder


class TestSlopesStayExact:
    @pytest.mark.parametrize("dtype", [*DTYPES, *LOW_PRECISION], ids=str)
    def test_after_loading_in_a_dtype(self, saved, dtype):
        model = load(AutoModelForMaskedLM, saved, dtype=dtype)
        assert model.dtype == dtype
        assert_slopes_are_exact(model)

    @pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
    def test_after_a_cast(self, saved, cast):
        assert_slopes_are_exact(getattr(load(AutoModelForMaskedLM, saved), cast)())

    def test_after_to_empty(self):
        with torch.device("meta"):
            model = build(num_attention_heads=12, hidden_size=48)
        assert_slopes_are_exact(model.to_empty(device="cpu"))

    def test_and_are_not_saved(self, saved):
        assert not [key for key in load_file(saved / "model.safetensors") if "slopes" in key]


# --- padding and masks -------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(length=strategies.integers(1, 30), left=strategies.integers(0, 40), right=strategies.integers(0, 40))
def test_padding_on_either_side_changes_nothing(length, left, right):
    ids = random_ids(1, length)
    padded = nn.functional.pad(ids, (left, right), value=3)
    mask = masks(left + length + right, slice(left, left + length))
    for attention in BACK_ENDS:
        model = cached_double_model(attention)
        alone = model(ids).last_hidden_state
        beside = model(padded, mask).last_hidden_state
        assert worst(beside[:, left : left + length], alone) < 1e-12
        assert torch.count_nonzero(beside[:, :left]) == torch.count_nonzero(beside[:, left + length :]) == 0


DOUBLE_MODELS = {}


def cached_double_model(attention):
    """Hypothesis calls a test many times and resets no fixture in between."""
    if attention not in DOUBLE_MODELS:
        DOUBLE_MODELS[attention] = build(AutoModel, attention, dtype=torch.float64).requires_grad_(False)
    return DOUBLE_MODELS[attention]


@pytest.mark.parametrize("attention", BACK_ENDS)
class TestMasks:
    def test_what_stands_in_a_hole_does_not_matter(self, attention):
        batch, model = padded_batch(), build(AutoModel, attention)
        hidden_states = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        other = torch.where(batch["attention_mask"].bool(), batch["input_ids"], random_ids(4, 24, seed=9))
        assert torch.equal(model(other, batch["attention_mask"]).last_hidden_state, hidden_states)

    def test_a_mask_of_ones_is_no_mask(self, attention):
        ids, model = random_ids(2, 9), build(AutoModel, attention)
        assert torch.equal(model(ids, torch.ones_like(ids)).last_hidden_state, model(ids).last_hidden_state)

    @pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.float32], ids=str)
    def test_a_mask_of_any_dtype_is_the_same(self, attention, mask_dtype):
        batch, model = padded_batch(), build(AutoModel, attention)
        expected = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        assert torch.equal(model(batch["input_ids"], batch["attention_mask"].to(mask_dtype))[0], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION], ids=str)
    def test_a_fully_masked_row_gives_zeros_and_finite_gradients(self, attention, dtype):
        model = draw_biases(build(attention=attention, dtype=dtype))
        ids, mask = random_ids(3, 12), masks(12, slice(None), [], slice(0, 5))
        outputs = model(ids, mask, labels=ids.masked_fill(mask == 0, -100), output_hidden_states=True)
        assert torch.count_nonzero(outputs.hidden_states[-1][1]) == 0
        assert outputs.logits.isfinite().all()
        outputs.loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())

    def test_a_fully_masked_row_leaves_the_others_alone(self, attention):
        model, ids = build(AutoModel, attention), random_ids(2, 12)
        both = model(ids, masks(12, slice(None), [])).last_hidden_state
        assert worst(both[:1], model(ids[:1]).last_hidden_state) < 1e-6

    def test_a_mask_of_another_shape_is_refused(self, attention):
        with pytest.raises(ValueError, match=r"attention_mask must be \(batch, length\) = \(2, 9\), is \(2, 8\)"):
            build(AutoModel, attention)(random_ids(2, 9), torch.ones(2, 8))


# --- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
@pytest.mark.parametrize("attention", BACK_ENDS)
def test_one_token(auto_class, attention):
    assert build(auto_class, attention)(random_ids(1, 1))[0].isfinite().all()


def test_20_000_tokens_equal_attention_computed_by_hand():
    model = build(
        AutoModel, num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8
    ).requires_grad_(False)
    ids = random_ids(1, 20_000)
    last_hidden_state = model(ids).last_hidden_state[0]
    assert last_hidden_state.isfinite().all()

    embedded, layer = model.embeddings(ids, None, None)[0], model.encoder.layer[0]
    query, key, value = layer.attention.self.Wqkv(embedded).view(-1, 3, 2, 4).permute(1, 2, 0, 3)
    position = torch.arange(20_000)
    for row in (0, 9_999, 19_999):
        penalty = model.encoder.alibi.slopes[:, None] * (position - row).abs()
        scores = (key @ query[:, row, :, None]).squeeze(-1) / math.sqrt(4) - penalty
        context = (scores.softmax(-1)[:, None] @ value).flatten()
        expected = layer.mlp(layer.attention.output(context, embedded[row]))
        assert worst(last_hidden_state[row], expected) < 1e-5


# --- what goes in and what comes out -----------------------------------------------------------------------------


class TestInputs:
    def test_embeddings_equal_ids(self):
        batch, model = padded_batch(), build()
        embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
        assert torch.equal(model(inputs_embeds=embeddings, **batch).logits, model(**padded_batch()).logits)

    def test_neither_or_both_of_ids_and_embeddings_are_refused(self):
        ids, model = random_ids(1, 4), build(AutoModel)
        for inputs in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
            with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
                model(**inputs)

    def test_token_types_default_to_zeros(self):
        ids, model = random_ids(2, 9), build(AutoModel)
        expected = model(ids).last_hidden_state
        assert torch.equal(model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state, expected)
        assert not torch.equal(model(ids, token_type_ids=torch.ones_like(ids)).last_hidden_state, expected)

    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_the_second_positional_argument_is_the_mask(self, auto_class):
        ids, mask, model = random_ids(4, 24), four_masks(24), build(auto_class)
        assert torch.equal(model(ids, mask)[0], model(ids, attention_mask=mask)[0])
        assert not torch.equal(model(ids, mask)[0], model(ids)[0])

    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_an_unknown_argument_is_refused(self, auto_class):
        with pytest.raises(TypeError, match="position_ids"):
            build(auto_class)(random_ids(1, 4), position_ids=torch.arange(4)[None])


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
class TestOutputs:
    def test_hidden_states_are_the_embeddings_and_every_layer(self, auto_class):
        model = build(auto_class)
        batch = {key: value for key, value in padded_batch().items() if key != "labels"}
        hidden_states = model(**batch, output_hidden_states=True).hidden_states
        assert len(hidden_states) == TINY["num_hidden_layers"] + 1
        assert torch.equal(hidden_states[-1], model.base_model(**batch).last_hidden_state)
        assert torch.equal(hidden_states[0], model.base_model.embeddings(batch["input_ids"], None, None))

    def test_neither_is_there_unless_asked_for(self, auto_class):
        outputs = build(auto_class)(random_ids(1, 4))
        assert outputs.hidden_states is None and outputs.attentions is None

    def test_the_configuration_asks_for_them_too(self, auto_class):
        outputs = build(auto_class, "eager", output_hidden_states=True, output_attentions=True)(random_ids(1, 4))
        assert len(outputs.hidden_states) == len(outputs.attentions) + 1 == TINY["num_hidden_layers"] + 1

    def test_a_tuple_on_request(self, auto_class):
        model, ids = build(auto_class), random_ids(2, 9)
        outputs, as_tuple = model(ids), model(ids, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert all(torch.equal(a, b) for a, b in zip(as_tuple, outputs.to_tuple(), strict=True))


def test_attentions_are_those_of_eager_on_every_back_end_with_one_warning(caplog):
    logging.Logger.warning_once.cache_clear()
    batch = padded_batch()
    inputs = (batch["input_ids"], batch["attention_mask"])
    eager = build(AutoModel, "eager")(*inputs, output_attentions=True)
    assert not caplog.records
    model = build(AutoModel, "sdpa")
    with caplog.at_level("WARNING"):
        outputs, _ = (model(*inputs, output_attentions=True) for _ in range(2))
    assert ["eager" in record.message for record in caplog.records] == [True]
    assert len(outputs.attentions) == TINY["num_hidden_layers"]
    for ours, expected in zip(outputs.attentions, eager.attentions, strict=True):
        assert torch.equal(ours, expected)
        assert worst(ours.sum(-1), torch.ones(4, 4, 24)) < 1e-6
        assert torch.count_nonzero(ours.masked_select(batch["attention_mask"][:, None, None] == 0)) == 0
    assert worst(outputs.last_hidden_state, model(*inputs).last_hidden_state) < 1e-5


class TestAttentionNames:
    def test_sdpa_is_the_default(self, saved):
        assert AutoModel.from_pretrained(saved, trust_remote_code=True).config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_a_model_can_be_switched(self, saved, attention, monkeypatch):
        model = load(AutoModel, saved, "eager" if attention == "sdpa" else "sdpa")
        model.set_attn_implementation(attention)
        original, called = remote_module(model).ATTENTION_FUNCTIONS[attention], []
        spy = {attention: lambda *args, **kwargs: called.append(attention) or original(*args, **kwargs)}
        monkeypatch.setattr(remote_module(model), "ATTENTION_FUNCTIONS", spy)
        model(random_ids(1, 4))
        assert called == [attention] * TINY["num_hidden_layers"]

    # ImportError: what transformers raises once it believes that a model has flash attention and the package is absent
    @pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4", "paged|eager", "anything"])
    class TestThatAreNotOursAreRefused:
        def test_by_loading_or_the_first_forward(self, saved, name):
            with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Ff]lash"):
                load(AutoModel, saved, name)(random_ids(1, 4))

        def test_by_set_attn_implementation_or_the_first_forward(self, saved, name):
            model = load(AutoModel, saved)
            with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Ff]lash"):
                model.set_attn_implementation(name)
                model(random_ids(1, 4))

        def test_by_the_forward(self, name):
            model = build(AutoModel)
            model.config._attn_implementation = name
            with pytest.raises(ValueError, match="would drop ALiBi"):
                model(random_ids(1, 4))


# --- losses ------------------------------------------------------------------------------------------------------


class TestMaskedLMLoss:
    def test_is_the_mean_over_labels(self):
        batch, model = padded_batch(), build()
        outputs = model(**batch)
        labelled = batch["labels"] != -100
        expected = nn.functional.cross_entropy(outputs.logits[labelled], batch["labels"][labelled])
        assert worst(outputs.loss, expected) < 1e-6

    def test_is_the_sum_over_num_items_in_batch(self):
        batch, model = padded_batch(), build()
        number = (batch["labels"] != -100).sum()
        for num_items in (3 * number, int(3 * number)):
            assert worst(3 * model(**batch, num_items_in_batch=num_items).loss, model(**batch).loss) < 1e-6

    def test_of_no_label_at_all_is_nan_as_in_all_of_transformers(self):
        ids = random_ids(2, 9)
        assert build()(ids, labels=torch.full_like(ids, -100)).loss.isnan()

    def test_logits_are_real_at_every_position(self):
        batch, model = padded_batch(), build()
        labels = batch.pop("labels")
        assert torch.equal(model(**batch).logits, model(**batch, labels=labels).logits)

    def test_sparse_prediction_gives_the_same_at_labels_alone(self):
        batch, dense, sparse = padded_batch(), build(), build()
        expected, outputs = dense(**batch), sparse(**batch, sparse_prediction=True)
        assert worst(outputs.logits, expected.logits[batch["labels"] != -100]) < 1e-5
        assert worst(outputs.loss, expected.loss) < 1e-6
        expected.loss.backward()
        outputs.loss.backward()
        for name, gradient in gradients(dense).items():
            assert worst(gradients(sparse)[name], gradient) < 1e-5, name

    def test_sparse_prediction_without_labels_is_refused(self):
        with pytest.raises(ValueError, match="needs labels"):
            build()(random_ids(1, 4), sparse_prediction=True)


def binary_cross_entropy(logits, labels):
    return -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()


SEQUENCE_PROBLEMS = {
    # name: (problem_type, number of labels, labels of four rows, formula)
    "single label": (
        "single_label_classification",
        3,
        torch.tensor([0, 2, 1, 2]),
        lambda logits, labels: -logits.log_softmax(-1)[torch.arange(4), labels].mean(),
    ),
    "several labels": (
        "multi_label_classification",
        3,
        torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).float(),
        binary_cross_entropy,
    ),
    "regression": (
        "regression",
        1,
        torch.tensor([0.5, -2.0, 3.0, 0.0]),
        lambda logits, labels: ((logits[:, 0] - labels) ** 2).mean(),
    ),
}


@pytest.mark.parametrize("inferred", [False, True], ids=["named", "inferred"])
@pytest.mark.parametrize("problem", SEQUENCE_PROBLEMS)
class TestSequenceClassificationLoss:
    def outputs(self, problem, inferred, **kwargs):
        problem_type, num_labels, labels, _ = SEQUENCE_PROBLEMS[problem]
        model = build(
            AutoModelForSequenceClassification,
            num_labels=num_labels,
            problem_type=None if inferred else problem_type,
        )
        outputs = model(random_ids(4, 24), four_masks(24), labels=labels, **kwargs)
        assert model.config.problem_type == problem_type
        return outputs, labels

    def test_is_the_formula(self, problem, inferred):
        outputs, labels = self.outputs(problem, inferred)
        assert outputs.logits.shape == (4, SEQUENCE_PROBLEMS[problem][1])
        assert worst(outputs.loss, SEQUENCE_PROBLEMS[problem][3](outputs.logits, labels)) < 1e-6

    def test_is_the_sum_over_num_items_in_batch(self, problem, inferred):
        mean, labels = self.outputs(problem, inferred)
        scaled, _ = self.outputs(problem, inferred, num_items_in_batch=torch.tensor(3 * labels.numel()))
        assert worst(3 * scaled.loss, mean.loss) < 1e-6


def test_regression_with_several_targets():
    model = build(AutoModelForSequenceClassification, num_labels=2, problem_type="regression")
    labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    outputs = model(random_ids(4, 24), labels=labels)
    assert worst(outputs.loss, ((outputs.logits - labels) ** 2).mean()) < 1e-6


def test_token_classification_loss_is_the_mean_over_labels():
    model = build(AutoModelForTokenClassification, num_labels=3)
    batch = padded_batch()
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)
    outputs = model(**batch)
    assert outputs.logits.shape == (4, 24, 3)
    labelled = batch["labels"] != -100
    expected = nn.functional.cross_entropy(outputs.logits[labelled], batch["labels"][labelled])
    assert worst(outputs.loss, expected) < 1e-6
    assert worst(2 * model(**batch, num_items_in_batch=2 * labelled.sum()).loss, expected) < 1e-6


@pytest.mark.parametrize("auto_class", AUTO_CLASSES[2:])
def test_a_classifier_has_its_own_dropout_rate(auto_class):
    assert build(auto_class, hidden_dropout_prob=0.25).dropout.p == 0.25
    assert build(auto_class, hidden_dropout_prob=0.25, classifier_dropout=0.0).dropout.p == 0.0


# --- precision ---------------------------------------------------------------------------------------------------


def rounded_model(attention, dtype, auto_class=AutoModelForMaskedLM):
    """A float32 model whose weights `dtype` holds exactly: a model in `dtype` differs by its arithmetic alone."""
    return draw_biases(build(auto_class, attention, num_hidden_layers=3)).to(dtype).float()


def relative_error(actual, expected):
    """The root mean square of the difference, over that of the expected values."""
    difference = actual.detach().float() - expected.detach()
    return (difference.pow(2).mean() / expected.detach().pow(2).mean()).sqrt().item()


def errors(dtype, run, auto_class=AutoModelForMaskedLM):
    """Relative errors a back end of logits and gradients that `run(model, batch)` gives, against float32."""
    exact = rounded_model("eager", dtype, auto_class)
    expected = exact(**padded_batch())
    expected.loss.backward()
    result = {}
    for attention in BACK_ENDS:
        model = rounded_model(attention, dtype, auto_class)
        model, outputs = run(model, padded_batch())
        outputs.loss.backward()
        flat = [torch.cat([gradients(m)[name].float().flatten() for name in gradients(exact)]) for m in (model, exact)]
        result[attention] = relative_error(outputs.logits, expected.logits), relative_error(*flat)
    return result


def run_with_weights(dtype):
    def run(model, batch):
        model = model.to(dtype)
        outputs = model(**batch)
        assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
        return model, outputs

    return run


def run_with_autocast(dtype):
    def run(model, batch):
        with torch.autocast("cpu", dtype):
            outputs = model(**batch)
        assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
        return model, outputs

    return run


# Errors are counted in roundings, 2^-9 in bfloat16 and 2^-12 in float16. Over four seeds and both ways to run, either
# back end gave 4 to 7.5 of them in the logits and 4 to 17 in the gradients, in both dtypes: twice that is allowed.
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("run", [run_with_weights, run_with_autocast])
def test_low_precision_stays_as_close_to_float32_as_it_can(run, dtype):
    result = errors(dtype, run(dtype))
    for quantity, bound in ((0, 15), (1, 34)):  # logits, gradients
        eager, sdpa = result["eager"][quantity], result["sdpa"][quantity]
        assert eager < bound * ROUNDING[dtype]
        assert sdpa < 2 * eager


class TestLowPrecisionLayerNorm:
    def norm_dtypes(self, **values):
        model, dtypes = build(**values), []
        for module in model.bert.modules():  # the head's own input is in the autocast dtype, and CPUs keep that
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**padded_batch()).loss
        loss.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
        assert len(dtypes) == 2 * TINY["num_hidden_layers"] + 1
        return set(dtypes)

    def test_computes_in_the_autocast_dtype(self):
        assert self.norm_dtypes(low_precision_layernorm=True) == {torch.bfloat16}

    def test_is_off_by_default(self):
        assert self.norm_dtypes() == {torch.float32}

    def test_changes_nothing_without_autocast(self):
        batch = padded_batch()
        assert torch.equal(build(low_precision_layernorm=True)(**batch).logits, build()(**batch).logits)

    def test_stays_close_to_float32(self):
        batch = padded_batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = build(low_precision_layernorm=True)(**batch).logits
        assert relative_error(logits, build()(**batch).logits) < 12 * ROUNDING[torch.bfloat16]


# --- fresh weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_fresh_weights(auto_class, initializer_range):
    model = build(auto_class, hidden_size=64, vocab_size=512, initializer_range=initializer_range)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name.lower():
            assert (parameter == 1).all(), name
        else:  # five standard errors of a standard deviation, sigma / sqrt(2n)
            within = 5 * initializer_range / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - initializer_range) < within, name
            assert abs(parameter.mean().item()) < 5 * initializer_range / math.sqrt(parameter.numel()), name


# --- saving and loading ------------------------------------------------------------------------------------------


def assert_equal_tensors(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def assert_tied(model):
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_saving_and_loading_keeps_every_tensor(auto_class, tmp_path):
    model = build(auto_class)
    model.save_pretrained(tmp_path)
    loaded, info = load(auto_class, tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal_tensors(loaded, model)
    assert_slopes_are_exact(loaded)
    assert all((tmp_path / file).is_file() for file in CODE_FILES)
    assert not list(tmp_path.glob("*.bin"))


class TestBetweenHeads:
    def test_an_mlm_checkpoint_lacks_the_pooler_alone(self, tmp_path):
        build().save_pretrained(tmp_path)
        _, info = load(AutoModel, tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
        assert all(key.startswith("cls.predictions.") for key in info["unexpected_keys"])

    def test_an_encoder_checkpoint_gives_an_mlm_model_its_weights(self, tmp_path):
        encoder_alone = build(AutoModel)
        encoder_alone.save_pretrained(tmp_path)
        model, info = load(AutoModelForMaskedLM, tmp_path, output_loading_info=True)
        assert all(key.startswith("cls.predictions.") for key in info["missing_keys"])
        assert all("pooler" in key for key in info["unexpected_keys"])
        for name, tensor in model.bert.state_dict().items():
            assert torch.equal(tensor, encoder_alone.state_dict()[name]), name
        assert_tied(model)


class TestTiedWeights:
    def test_are_tied_in_a_fresh_and_in_a_loaded_model(self, tmp_path):
        model = build()
        assert_tied(model)
        model.save_pretrained(tmp_path)
        assert_tied(model)
        assert_tied(load(AutoModelForMaskedLM, tmp_path))

    def test_are_stored_once(self, tmp_path):
        build().save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            tied = {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"} & set(file.keys())
        assert len(tied) == 1

    @pytest.mark.parametrize("size", [50, 80])
    def test_stay_tied_and_biased_when_the_vocabulary_is_resized(self, size, tmp_path):
        model = build()
        kept = min(size, TINY["vocab_size"])
        with torch.no_grad():
            model.cls.predictions.decoder.bias.normal_()
        before = copy.deepcopy(model.state_dict())
        model.resize_token_embeddings(size)
        assert_tied(model)
        assert model.config.vocab_size == size
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"):
            assert model.state_dict()[name].shape[0] == size
            assert torch.equal(model.state_dict()[name][:kept], before[name][:kept])
        assert model(random_ids(1, 4, vocab_size=kept)).logits.shape == (1, 4, size)
        model.save_pretrained(tmp_path)
        loaded = load(AutoModelForMaskedLM, tmp_path)
        assert_tied(loaded)
        assert_equal_tensors(loaded, model)

    def test_are_two_where_the_configuration_says_so(self, tmp_path):
        model = build(tie_word_embeddings=False)
        assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
        model.save_pretrained(tmp_path)
        loaded, info = load(AutoModelForMaskedLM, tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert_equal_tensors(loaded, model)


def test_device_map_auto(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = load(AutoModelForMaskedLM, tmp_path, device_map="auto")
    batch = {key: value.to(loaded.device) for key, value in padded_batch().items()}
    assert worst(loaded(**batch).logits.cpu(), model(**padded_batch()).logits) < 1e-5


def test_a_device_map_with_a_layer_on_disk(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "model")
    device_map = {"bert.embeddings": "cpu", "bert.encoder.alibi": "cpu", "cls": "cpu"}
    device_map |= {"bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk"}
    loaded = load(AutoModelForMaskedLM, tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
    assert worst(loaded(**padded_batch()).logits, model(**padded_batch()).logits) < 1e-5


# --- checkpointing and compiling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", BACK_ENDS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(attention, dropout, use_reentrant):
    losses, all_gradients = [], []
    for checkpointing in (False, True):
        model = build(attention=attention, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert all(layer.gradient_checkpointing for layer in encoder(model).layer)
        torch.manual_seed(5)
        loss = model(**padded_batch()).loss
        loss.backward()
        losses.append(loss)
        all_gradients.append(gradients(model))
    assert torch.equal(*losses)
    for name, gradient in all_gradients[0].items():
        assert worst(all_gradients[1][name], gradient) < 1e-6, name


class TestDropout:
    @pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_each_rate_acts_in_training_alone(self, attention, rate):
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model, ids = build(AutoModel, attention, **off | {rate: 0.5}), random_ids(2, 9)
        assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
        model.train()
        assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)

    @pytest.mark.parametrize("attention", BACK_ENDS)
    def test_without_a_rate_training_equals_evaluation(self, attention):
        model, ids = build(AutoModel, attention, hidden_dropout_prob=0.0), random_ids(2, 9)
        assert torch.equal(model(ids).last_hidden_state, model.train()(ids).last_hidden_state)


@pytest.mark.parametrize("attention", BACK_ENDS)
def test_the_padded_path_compiles_into_one_graph(attention):
    """`aot_eager` traces forward and backward as inductor does, but needs no C compiler and no twenty seconds."""
    torch._dynamo.reset()
    model = build(attention=attention)
    batch = padded_batch()
    expected = model(**batch)
    expected.loss.backward()
    expected_gradients = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    outputs = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
    outputs.loss.backward()
    assert worst(outputs.logits, expected.logits) < 1e-5
    assert worst(outputs.loss, expected.loss) < 1e-6
    for name, gradient in gradients(model).items():
        assert worst(gradient, expected_gradients[name]) < 1e-5, name


# --- transformers.Trainer ----------------------------------------------------------------------------------------


def trainer(model, rows, folder, **arguments):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 7,
    }
    return Trainer(model, TrainingArguments(**defaults | arguments), train_dataset=rows, eval_dataset=rows)


def alternating_rows(number, length=12, labels_a_row=lambda row: 3):
    """Rows of two alternating tokens; some tokens are masked (id 4) and are the labels: the neighbours tell them."""
    rows = []
    for row in range(number):
        generator = torch.Generator().manual_seed(row)
        pair = torch.randperm(8, generator=generator)[:2] + 5
        ids = pair.repeat(length // 2)
        chosen = torch.randperm(length, generator=generator)[: labels_a_row(row)]
        labels = torch.full_like(ids, -100)
        labels[chosen] = ids[chosen]
        rows.append({"input_ids": ids.index_fill(0, chosen, 4), "labels": labels})
    return rows


class TestTrainer:
    def test_trains_evaluates_saves_and_reloads(self, tmp_path):
        rows = alternating_rows(64)
        model = build(initializer_range=0.02)
        run = trainer(model, rows, tmp_path / "run", max_steps=60, eval_accumulation_steps=2)
        before = run.evaluate()["eval_loss"]
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
        after = run.evaluate()["eval_loss"]
        assert after < 0.6 * before

        predictions = run.predict(rows)
        assert predictions.predictions.shape == (64, 12, TINY["vocab_size"])
        assert predictions.metrics["test_loss"] == pytest.approx(after)

        run.save_model(tmp_path / "saved")
        loaded = load(AutoModelForMaskedLM, tmp_path / "saved")
        assert_equal_tensors(loaded, model)
        assert trainer(loaded, rows, tmp_path / "again").evaluate()["eval_loss"] == pytest.approx(after)

    # Each row has another number of labels, so that a mean of means would not do.
    def trained(self, tmp_path, build_model, rows, batch_size, accumulation):
        model = build_model()
        run = trainer(
            model,
            rows,
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",  # Adam would magnify the rounding of gradients near zero
            learning_rate=0.1,
        )
        run.train()
        return model, [entry["loss"] for entry in run.state.log_history if "loss" in entry]

    PROBLEMS = {
        "masked language": (
            lambda: build(hidden_dropout_prob=0.0),
            alternating_rows(24, labels_a_row=lambda row: 1 + row % 7),
        ),
        "tokens": (
            lambda: build(AutoModelForTokenClassification, hidden_dropout_prob=0.0, num_labels=16),
            alternating_rows(24, labels_a_row=lambda row: 1 + row % 7),
        ),
        "regression": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=1),
            [{"input_ids": random_ids(12, seed=row), "labels": math.sin(row)} for row in range(24)],
        ),
        "several labels": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=3),
            [{"input_ids": random_ids(12, seed=row), "labels": [row % 2 / 1, row % 3 / 2, 1.0]} for row in range(24)],
        ),
        "single label": (
            lambda: build(AutoModelForSequenceClassification, hidden_dropout_prob=0.0, num_labels=3),
            [{"input_ids": random_ids(12, seed=row), "labels": row % 3} for row in range(24)],
        ),
    }

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_accumulating_four_times_two_rows_equals_eight(self, problem, tmp_path):
        build_model, rows = self.PROBLEMS[problem]
        one, losses = self.trained(tmp_path, build_model, rows, 8, 1)
        four, accumulated_losses = self.trained(tmp_path, build_model, rows, 2, 4)
        assert accumulated_losses == pytest.approx(losses, abs=1e-4)  # Trainer rounds what it logs
        for name, tensor in one.state_dict().items():
            assert worst(four.state_dict()[name], tensor) < 1e-6, name
