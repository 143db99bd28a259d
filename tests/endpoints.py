"""Model folders with handler.py, and its answers as an Inference Endpoint gives them."""

import importlib.util
import json
import shutil

import pytest
from models import ROOT, build, draw_biases, tiny_config
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification


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


def is_readable(status, answer) -> bool:
    """An error that a caller can read: one line, short, of words, without a trace."""
    message = answer.get("error", "") if status == 400 else ""
    return 10 < len(message) < 300 and "\n" not in message and "Traceback" not in message and message.isprintable()


def closely(expected):
    return pytest.approx(expected, abs=1e-5)
