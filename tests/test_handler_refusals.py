"""handler.py on requests that it cannot answer: told in words, quickly, whatever was sent.

pytest tests/test_handler_refusals.py
"""

import json
import random
import time

import psutil
import pytest
import torch
from endpoints import CHECKPOINTS, SEQUENCES, is_readable, post, save, serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def handlers(tmp_path_factory):
    return {name: serve(save(tmp_path_factory.mktemp(name), *CHECKPOINTS[name])) for name in ("masked", "classes")}


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
