"""handler.py, called as Inference Endpoints call it: imported from a model's folder, given bodies of JSON.

pytest tests/test_handler.py
"""

import ast
import importlib.util
import json
import random
import shutil
import sys
import time
from configparser import ConfigParser
from itertools import chain

import psutil
import pytest
import torch
from huggingface_hub import TextClassificationOutputElement
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import ROOT, build, draw_biases, tiny_config
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)


NAMES = {0: "promoter", 1: "enhancer", 2: "neither"}
SCALE = {"label_mean": 30.0, "label_std": 10.0}
CHECKPOINTS = {
    "masked": (AutoModelForMaskedLM, {}),
    "encoder": (AutoModel, {}),
    "classes": (AutoModelForSequenceClassification, {"id2label": NAMES}),
    "several": (AutoModelForSequenceClassification, {"id2label": NAMES, "problem_type": "multi_label_classification"}),
    "number": (AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"} | SCALE),
}
MEAN = {"parameters": {"pooling": "mean"}}
SEQUENCES = ["ACGTTGCATGCCATGA", "TTTTGACGGANNNNACGTACCAGTTTGACCATTTACG" * 3, "GATTACA", "ACGRYTTAC" * 4]


# --- what an endpoint does ---------------------------------------------------------------------------------------


def serve(folder, *path):
    """The handler of a model's folder, imported as an endpoint does."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(*path or [str(folder)])


def post(handler, body) -> tuple[int, object]:
    """Status and JSON of the answer to a request of JSON, or of what json.dumps makes it of."""
    try:
        data = json.loads(body if isinstance(body, str) else json.dumps(body))
        answer = handler(data)
    except Exception as error:  # an endpoint's, too
        return 400, {"error": str(error)}
    return 200, json.loads(json.dumps(answer, allow_nan=False))


def save(folder, auto_class, config):
    vocab_size = len(json.loads((ROOT / "tokenizer.json").read_text())["model"]["vocab"])
    model = build(auto_class, config=tiny_config(vocab_size=vocab_size, **config))
    draw_biases(model).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "handler.py"):
        shutil.copy(ROOT / file, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name), *of) for name, of in CHECKPOINTS.items()}


@pytest.fixture(scope="module")
def handlers(folders):
    return {name: serve(folder) for name, folder in folders.items()}


def is_readable(status, answer) -> bool:
    """An error that a caller can read: one line, short, of words, without a trace."""
    message = answer.get("error", "") if status == 400 else ""
    return 10 < len(message) < 300 and "\n" not in message and "Traceback" not in message and message.isprintable()


def closely(expected):
    return pytest.approx(expected, abs=1e-5)


# --- good requests -----------------------------------------------------------------------------------------------


class TestFillMask:
    @pytest.mark.parametrize("top_k", [None, 1, 7])
    @pytest.mark.parametrize("masked", ["ACGTTGCA[MASK]TTGACC", "[MASK]ACGTTNCA[MASK]TTGACC[MASK]"])
    def test_answers_what_the_pipeline_does(self, folders, handlers, masked, top_k):
        parameters = {"top_k": top_k} if top_k else {}
        expected = pipeline("fill-mask", model=str(folders["masked"]), trust_remote_code=True)(masked, **parameters)
        status, answer = post(handlers["masked"], {"inputs": masked, "parameters": {"top_k": top_k}})
        assert status == 200
        is_one = masked.count("[MASK]") == 1
        for ours, theirs in zip([answer] if is_one else answer, [expected] if is_one else expected, strict=True):
            assert len(ours) == (top_k or 5)
            for guess, other in zip(ours, theirs, strict=True):
                assert guess == other | {"score": closely(other["score"])}

    def test_fills_many_sequences_as_it_fills_each(self, handlers):
        inputs = [f"{sequence}[MASK]{sequence}" for sequence in SEQUENCES] + ["AC[MASK]GT[MASK]"]
        _, answers = post(handlers["masked"], {"inputs": inputs})
        for one, answer in zip(inputs, answers, strict=True):
            _, alone = post(handlers["masked"], {"inputs": one})
            answer, alone = (each if one.count("[MASK]") > 1 else [each] for each in (answer, alone))
            for guess, other in zip(chain(*answer), chain(*alone), strict=True):
                assert guess == other | {"score": closely(other["score"])}

    def test_gives_bases_without_spaces(self, handlers):
        _, guesses = post(handlers["masked"], {"inputs": "acgn[mask]ttg", "parameters": {"top_k": 50}})
        for guess in guesses:
            filling = "" if guess["token_str"].startswith("[") else guess["token_str"]
            assert guess["sequence"] == f"ACGN{filling}TTG"


class TestClassification:
    @pytest.mark.parametrize("checkpoint", ["classes", "several"])
    def test_answers_what_the_pipeline_does_by_the_names_of_the_labels(self, folders, handlers, checkpoint):
        classify = pipeline("text-classification", model=str(folders[checkpoint]), trust_remote_code=True)
        status, answers = post(handlers[checkpoint], {"inputs": SEQUENCES})
        assert status == 200
        for sequence, answer in zip(SEQUENCES, answers, strict=True):
            expected = classify(sequence, top_k=None)
            assert [label["label"] for label in answer] == [label["label"] for label in expected]
            assert [label["score"] for label in answer] == closely([label["score"] for label in expected])
        assert {label["label"] for label in answers[0]} == set(NAMES.values())

    def test_gives_as_many_labels_as_asked_for(self, handlers):
        _, [labels] = post(handlers["classes"], {"inputs": SEQUENCES[0]})
        _, [first] = post(handlers["classes"], {"inputs": SEQUENCES[0], "parameters": {"top_k": 1}})
        assert first == labels[:1] and sum(label["score"] for label in labels) == closely(1)

    def test_gives_a_regression_in_the_unit_of_its_labels(self, folders, handlers):
        model = AutoModelForSequenceClassification.from_pretrained(folders["number"], trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folders["number"], trust_remote_code=True)
        logit = model(**tokenizer(SEQUENCES[0], return_tensors="pt")).logits.item()
        _, answer = post(handlers["number"], {"inputs": SEQUENCES[0]})
        assert answer == [[{"label": "LABEL_0", "score": closely(30 + 10 * logit)}]]

    def test_gives_one_sequence_all_labels_as_the_hub_s_client_reads_them(self, handlers):
        _, answer = post(handlers["classes"], {"inputs": SEQUENCES[0]})
        labels = TextClassificationOutputElement.parse_obj_as_list(answer)[0]  # so does InferenceClient
        assert {label["label"] for label in labels} == set(NAMES.values())

    def test_gives_means_of_both_strands_where_the_model_was_scored_so(self, folders, handlers, tmp_path):
        both = shutil.copytree(folders["classes"], tmp_path / "both")
        config = json.loads((both / "config.json").read_text())
        (both / "config.json").write_text(json.dumps(config | {"reverse_complement": True}))
        (sequence, other), name = ("ACGRN[MASK]TTA", "TAA[MASK]NYCGT"), NAMES[1]
        strands = post(handlers["classes"], {"inputs": [sequence, other]})[1]
        of_each = [{label["label"]: label["score"] for label in strand}[name] for strand in strands]
        answers = post(serve(both), {"inputs": [sequence, other]})[1]
        given = [{label["label"]: label["score"] for label in answer}[name] for answer in answers]
        assert of_each[0] != closely(of_each[1]) and given == closely([sum(of_each) / 2] * 2)


class TestEmbeddings:
    @pytest.mark.parametrize("checkpoint", CHECKPOINTS)
    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_are_those_of_the_hidden_states_at_real_tokens(self, folders, handlers, checkpoint, pooling):
        model = AutoModel.from_pretrained(folders[checkpoint], trust_remote_code=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folders[checkpoint], trust_remote_code=True)
        _, answers = post(handlers[checkpoint], {"inputs": SEQUENCES, "parameters": {"pooling": pooling}})
        for sequence, answer in zip(SEQUENCES, answers, strict=True):
            with torch.no_grad():
                hidden_states = model(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0]
            assert answer == closely((hidden_states[0] if pooling == "cls" else hidden_states.mean(0)).tolist())

    def test_are_asked_for_as_the_hub_s_client_does(self, handlers):
        _, whole = post(handlers["masked"], {"inputs": SEQUENCES[:1]} | MEAN)
        beside = {"normalize": True, "truncate": True, "prompt_name": None, "options": {"wait_for_model": True}}
        status, answer = post(handlers["masked"], {"inputs": SEQUENCES[0]} | beside)
        vector = torch.tensor(whole[0])
        assert status == 200 and answer == closely((vector / vector.norm()).tolist())

    def test_are_means_where_an_encoder_is_asked_for_nothing_else(self, handlers):
        bare, mean = ({"inputs": SEQUENCES[0]}, {"inputs": SEQUENCES[0]} | MEAN)
        assert post(handlers["encoder"], bare) == post(handlers["encoder"], mean)

    @pytest.mark.parametrize("same", ["acgttgcauucc", "ACGT TGCA\nTTCC\n", "\tacgtTGCAttcc "])
    def test_know_neither_case_nor_white_space(self, handlers, same):
        first, second = post(handlers["encoder"], {"inputs": ["ACGTTGCATTCC", same]})[1]
        assert second == closely(first)

    def test_are_changed_by_n(self, handlers):
        first, second = post(handlers["encoder"], {"inputs": ["ACGTTGCATTCC", "ACGTTNCATTCC"]})[1]
        assert second != closely(first)


class TestLimitsOfBatches:
    @pytest.mark.parametrize("limit, value", [("BATCH_TOKENS", {"cpu": 64, "cuda": 64}), ("BATCH_SCORES", 4 * 50**2)])
    def test_keep_the_answers_and_their_order(self, handlers, monkeypatch, limit, value):
        handler = handlers["masked"]
        inputs = [f"{sequence}[MASK]" for sequence in SEQUENCES * 5]
        _, whole = post(handler, {"inputs": inputs} | MEAN)
        monkeypatch.setitem(handler.run.__globals__, limit, value)
        batches, pad = [], handler.pad
        monkeypatch.setattr(handler, "pad", lambda rows: batches.append([len(ids) for ids in rows]) or pad(rows))
        _, parts = post(handler, {"inputs": inputs} | MEAN)
        for one, other in zip(parts, whole, strict=True):
            assert one == closely(other)
        assert len(batches) > 1
        assert list(chain(*batches)) == sorted(chain(*batches), reverse=True)
        for lengths in batches:
            size = len(lengths) * lengths[0] if limit == "BATCH_TOKENS" else len(lengths) * 4 * lengths[0] ** 2
            assert len(lengths) == 1 or size <= (64 if limit == "BATCH_TOKENS" else value)


class TestTruncation:
    def test_cuts_as_the_tokenizer_does(self, folders, handlers):
        tokenizer = AutoTokenizer.from_pretrained(folders["encoder"], trust_remote_code=True)
        model = AutoModel.from_pretrained(folders["encoder"], trust_remote_code=True).eval()
        parameters = {"max_length": 9, "truncation": True}
        _, answer = post(handlers["encoder"], {"inputs": SEQUENCES[1], "parameters": parameters})
        with torch.no_grad():
            inputs = tokenizer(SEQUENCES[1], return_tensors="pt", **parameters)
            assert inputs["input_ids"].shape == (1, 9)
            assert answer == closely(model(**inputs).last_hidden_state[0].mean(0).tolist())

    def test_leaves_no_trace_in_the_next_request(self, handlers):
        first = post(handlers["encoder"], {"inputs": SEQUENCES[1]})
        cut = post(handlers["encoder"], {"inputs": SEQUENCES[1], "parameters": {"max_length": 9, "truncation": True}})
        assert cut != first == post(handlers["encoder"], {"inputs": SEQUENCES[1]})


# --- bad requests ------------------------------------------------------------------------------------------------


def with_parameters(**parameters):
    return {"inputs": "ACGT[MASK]", "parameters": parameters}


BAD_REQUESTS = {  # to the masked language model, and what the message names
    "not an object": (["inputs"], "inputs"),
    "a string": ("inputs", "inputs"),
    "a number": (7, "inputs"),
    "nothing": (None, "inputs"),
    "no inputs": ({"sequences": "ACGT"}, "inputs"),
    "an unknown key": ({"inputs": "ACGT[MASK]", "sequences": {}}, "there is no parameter 'sequences'"),
    "an unknown key of a megabyte": ({"inputs": "ACGT[MASK]", "o" * 1_000_000: {}}, "ooo"),
    "null for inputs": ({"inputs": None}, "inputs must be text or a list, is null"),
    "a number for inputs": ({"inputs": 5}, "a number"),
    "NaN for inputs": ({"inputs": float("nan")}, "a number"),
    "an object for inputs": ({"inputs": {"text": "ACGT[MASK]"}}, "an object"),
    "no sequence": ({"inputs": []}, "0 sequences"),
    "nested lists": ({"inputs": ["ACGT[MASK]", ["ACGT[MASK]"]]}, "inputs[1] must be text, is a list"),
    "null among them": ({"inputs": ["ACGT[MASK]", None]}, "inputs[1] must be text, is null"),
    "a number among them": ({"inputs": [1.5]}, "inputs[0]"),
    "true among them": ({"inputs": [True]}, "inputs[0]"),
    "an empty sequence": ({"inputs": ""}, "inputs is empty"),
    "an empty one among them": ({"inputs": ["ACGT[MASK]", " \n"]}, "inputs[1] is empty"),
    "protein": ({"inputs": ["ACGT[MASK]", "MKVLE[MASK]"]}, "inputs[1] has 'L' at position 4"),
    "FASTA": ({"inputs": ">chr1\nACGT[MASK]"}, "inputs has '>' at position 1"),
    "digits": ({"inputs": "1 ACGT[MASK]"}, "'1' at position 1"),
    "another mask": ({"inputs": "ACGT<mask>"}, "'<' at position 5"),
    "another special token": ({"inputs": "ACGT[MASK][SEP]"}, "'[' at position 11"),
    "letters that look like bases": ({"inputs": "АСGT[MASK]"}, "at position 1"),
    "letters that are bases in upper case": ({"inputs": "ſACGT[MASK]"}, "at position 1"),
    "NUL": ({"inputs": "ACGT[MASK]\0"}, r"'\x00' at position 11"),
    "half a character": ('{"inputs": "ACGT[MASK]\\ud800"}', r"'\ud800' at position 11"),
    "no mask": ({"inputs": "ACGT"}, "inputs has no [MASK] to fill"),
    "no mask in one": ({"inputs": ["ACGT[MASK]", "ACGT"]}, "inputs[1] has no [MASK] to fill"),
    "the mask cut off": (
        {"inputs": "ACGT" * 50 + "[MASK]", "parameters": {"truncation": True, "max_length": 8}},
        "inputs has no [MASK] within max_length",
    ),
    "too many sequences": ({"inputs": ["A[MASK]"] * 1_001}, "1,001 sequences: send from 1 to 1,000"),
    "too many letters": ({"inputs": ["ACGT" * 5_000] * 6}, "120,000 letters in all: send at most 100,000"),
    "too many letters in one": ({"inputs": "A" * 100_001}, "100,001 letters in all"),
    "too many tokens": ({"inputs": ["ACGT[MASK]", "N" * 5_000]}, "inputs[1] has 5,002 tokens and may have 4,096"),
    "too many for max_length": (with_parameters(max_length=3), 'inputs has 6 tokens and may have 3: send it in pieces, or with "parameters": {"truncation": true}'),  # noqa: E501
    "too long an answer": ({"inputs": "[MASK]" * 1_500, "parameters": {"top_k": 100}}, "1,350,000,000 letters"),
    "parameters that are a list": ({"inputs": "ACGT[MASK]", "parameters": ["top_k"]}, "parameters must be an object"),
    "an unknown parameter": (with_parameters(topk=5), "there is no parameter 'topk': there are top_k, pooling"),
    "top_k of zero": (with_parameters(top_k=0), "top_k must be a whole number from 1 to 100"),
    "top_k below zero": (with_parameters(top_k=-1), "top_k"),
    "top_k beyond the limit": (with_parameters(top_k=10**30), "top_k"),
    "top_k as a string": (with_parameters(top_k="5"), "top_k"),
    "top_k as a fraction": (with_parameters(top_k=5.0), "top_k"),
    "top_k as infinity": (with_parameters(top_k=float("inf")), "top_k"),
    "top_k as true": (with_parameters(top_k=True), "top_k"),
    "another pooling": (with_parameters(pooling="max"), "pooling must be \"mean\" or \"cls\", is 'max'"),
    "pooling as a list": (with_parameters(pooling=["mean"]), "pooling"),
    "truncation as a string": (with_parameters(truncation="longest_first"), "truncation must be true or false"),
    "truncate as a string": ({"inputs": "ACGT[MASK]", "truncate": "yes"}, "truncation must be true or false"),
    "normalize as a number": (with_parameters(normalize=1), "normalize must be true or false"),
    "truncation as a number": (with_parameters(truncation=1), "truncation"),
    "max_length below that of any sequence": (with_parameters(max_length=2), "max_length must be a whole number"),
    "max_length beyond the limit": (with_parameters(max_length=5_000), "max_length must be a whole number from 3 to 4,096"),  # noqa: E501
    "embeddings and guesses": (with_parameters(pooling="mean", top_k=5), "top_k is of guesses and labels"),
}  # fmt: skip


@pytest.mark.parametrize("body, named", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_answered_with_what_is_wrong(handlers, body, named):
    # the string is a body of JSON where it can be one
    status, answer = post(
        handlers["masked"], body if isinstance(body, str) and body.startswith("{") else json.dumps(body)
    )
    assert is_readable(status, answer), answer
    assert named in answer["error"]


def malformed(draw: random.Random) -> object:
    """A request that cannot be answered, malformed or too large."""
    bad_values = [
        None,
        True,
        -1,
        1e308,
        float("nan"),
        {},
        [],
        [[["ACGT"]]],
        {"a": {"b": 1}},
        "",
        " ",
        "\0",
        "é" * 1_000,
    ]
    bad_sequences = [*bad_values, "ACGT" * 30_000, "N" * 4_200, "E" * 90_000, "ACGT" * 20_000 + "!", "ACGT"]
    choice = draw.randrange(6)
    if choice == 0:
        return draw.choice(bad_values)
    if choice == 1:
        return {"inputs": draw.choice(bad_sequences)}
    if choice == 2:
        inputs = ["ACGT[MASK]"] * draw.randrange(200)
        inputs.insert(draw.randint(0, len(inputs)), draw.choice(bad_sequences))
        return {"inputs": inputs}
    if choice == 3:
        return {"inputs": ["A[MASK]"] * draw.randrange(1_001, 100_000)}
    if choice == 4:
        name = draw.choice(["topk", "k" * 10_000, "return_full_text", ""])
        return {"inputs": "ACGT[MASK]", "parameters": {name: draw.choice(bad_values[1:])}}
    name = draw.choice(["top_k", "pooling", "max_length", "truncation"])
    values = [value for value in bad_values[1:] if not (name == "truncation" and value is True)]
    return {"inputs": "ACGT[MASK]", "parameters": {name: draw.choice(values)}}


def test_a_thousand_bad_requests_cost_little_time_and_memory(handlers):
    draw, process = random.Random(1), psutil.Process()
    before, start, slowest = process.memory_info().rss, time.process_time(), 0.0
    for _ in range(1_000):
        body = malformed(draw)
        begin = time.process_time()
        status, answer = post(handlers["masked"], body)
        slowest = max(slowest, time.process_time() - begin)
        assert is_readable(status, answer), answer
    assert slowest < 3 and time.process_time() - start < 60
    assert process.memory_info().rss - before < 200 * 2**20
    assert post(handlers["masked"], {"inputs": "ACGT[MASK]"})[0] == 200


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.text("ACGTNacgt[MASK] ")
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner), max_leaves=10
)
PARAMETERS = st.dictionaries(st.sampled_from(["top_k", "pooling", "max_length", "truncation"]), JSON)
REQUESTS = st.fixed_dictionaries({"inputs": JSON}, optional={"parameters": JSON | PARAMETERS})


@given(body=JSON | REQUESTS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_json_is_answered_or_refused_in_words(handlers, body):
    try:
        answer = handlers["masked"](body)
    except ValueError as error:
        assert is_readable(400, {"error": str(error)})
    else:
        json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error at /opt/secret/kernel.cu:17"), torch.OutOfMemoryError("")])
def test_a_model_that_fails_tells_the_caller_so_and_the_log_how(handlers, monkeypatch, caplog, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(handlers["masked"], "model", fail)
    monkeypatch.setattr(handlers["masked"], "batches", lambda rows: [range(len(rows))])
    status, answer = post(handlers["masked"], {"inputs": "ACGT[MASK]"})
    assert is_readable(status, answer)
    assert "secret" not in answer["error"]
    assert ("memory" in answer["error"]) == isinstance(error, torch.OutOfMemoryError)
    assert caplog.records[-1].exc_info[1] is error


def test_a_model_that_gives_nan_is_no_answer(handlers, monkeypatch):
    handler = handlers["classes"]
    monkeypatch.setattr(handler.model.classifier.bias, "data", torch.full((3,), torch.nan))
    status, answer = post(handler, {"inputs": SEQUENCES})
    assert is_readable(status, answer)


# --- the folder --------------------------------------------------------------------------------------------------


def test_stands_alone():
    nodes = list(ast.walk(ast.parse((ROOT / "handler.py").read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} - sys.stdlib_module_names == {"torch", "transformers"}


def test_asks_endpoints_for_the_versions_that_the_package_does():
    package = ConfigParser()
    package.read(ROOT / "setup.cfg")
    required = (ROOT / "requirements.txt").read_text().splitlines()[1:]
    assert required == package["options"]["install_requires"].strip().splitlines()[: len(required)]


def test_serves_the_folder_that_it_is_in_if_told_none(folders):
    assert serve(folders["masked"], "").model.name_or_path == str(folders["masked"])


def test_refuses_a_checkpoint_that_it_has_no_task_for(tmp_path):
    with pytest.raises(ValueError, match="DNABert2ForTokenClassification"):
        serve(save(tmp_path, AutoModelForTokenClassification, {}))


def test_refuses_a_model_of_k_mers(tmp_path):
    with pytest.raises(ValueError, match="overlapping 6-mers"):
        serve(save(tmp_path, AutoModelForSequenceClassification, {"kmer": 6}))


def test_refuses_a_tokenizer_that_is_larger_than_the_model(tmp_path):
    save(tmp_path, AutoModel, {})
    build(AutoModel, vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 4096 tokens"):
        serve(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpoint", ["masked", "encoder", "classes"])
def test_answers_on_a_gpu_as_on_the_cpu(tmp_path, monkeypatch, checkpoint):
    auto_class, config = CHECKPOINTS[checkpoint]
    # head dimension 64, so that the fused kernels run
    folder = save(tmp_path, auto_class, config | {"hidden_size": 128, "num_attention_heads": 2})
    inputs = [f"{sequence}[MASK]{sequence}" for sequence in SEQUENCES]
    requests = [{"inputs": inputs} | MEAN, {"inputs": inputs}]
    gpu = serve(folder)
    assert gpu.device == "cuda" and gpu.model.dtype == torch.bfloat16
    assert gpu.attention == ("flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa")
    ours = [post(gpu, request) for request in requests]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # from here on flash attention refuses, too
    cpu = serve(folder)
    assert cpu.device == "cpu" and cpu.model.dtype == torch.float32
    expected = [post(cpu, request) for request in requests]
    assert [status for status, _ in [*ours, *expected]] == [200] * 4, ours
    embeddings, other_embeddings = (torch.tensor(answers[0][1]) for answers in (ours, expected))
    torch.testing.assert_close(embeddings, other_embeddings, atol=0.05, rtol=0.05)
    if checkpoint != "encoder":
        for one, other in zip(ours[1][1], expected[1][1], strict=True):
            assert one[0]["score"] == pytest.approx(other[0]["score"], abs=0.05)
