"""Checkpoints as remote code: fresh processes load them from the saved folder alone, by Auto classes and pipelines.

Each folder has a process and a cache of its own, because the first class that transformers registers for a model type
wins, wherever a second checkpoint comes from. The process is this file run as a script: it prints what it saw as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from models import CODE_FILES, ROOT, build, tiny_config
from safetensors.torch import load_file


SEQUENCES = ["ACGTTGCATGCCATGA", "TTTTGACGGA"]
NAMES = {0: "promoter", 1: "enhancer", 2: "neither"}
TASKS = {
    # Auto class: (pipelines of its checkpoint, other Auto classes that must load it)
    "AutoModel": (["feature-extraction"], ["AutoModelForMaskedLM"]),
    "AutoModelForMaskedLM": (
        ["fill-mask", "feature-extraction"],
        ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"],
    ),
    "AutoModelForSequenceClassification": (["text-classification"], ["AutoModel"]),
    "AutoModelForTokenClassification": (["token-classification"], ["AutoModel"]),
}


# --- in the fresh process ----------------------------------------------------------------------------------------


def report(folder: str, auto_class: str) -> dict:
    """What a fresh process finds in `folder`; pipelines first, before anything else has registered a class."""
    result = {"pipelines": {}, "heads": {}}
    pipelines, others = TASKS[auto_class]
    for task in pipelines:
        pipeline = transformers.pipeline(task, model=folder, trust_remote_code=True)
        inputs = [sequence + "[MASK]" + sequence for sequence in SEQUENCES] if task == "fill-mask" else SEQUENCES
        result["pipelines"][task] = json.loads(json.dumps(pipeline(inputs), default=float))

    def load(name):
        return getattr(transformers, name).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)

    model, info = load(auto_class)
    stored = load_file(Path(folder) / "model.safetensors")
    state = model.state_dict()
    result["loading_info"] = {key: sorted(map(str, value)) for key, value in info.items()}
    result["unequal"] = sorted(name for name in stored if not torch.equal(state[name], stored[name]))
    result["not_stored"] = sorted(set(state) - set(stored))
    result["attention"] = model.config._attn_implementation
    result["slopes"] = model.base_model.encoder.alibi.slopes.tolist()
    result["slopes_dtype"] = str(model.base_model.encoder.alibi.slopes.dtype)
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    result["tied"] = output is not None and output.weight is embeddings.weight
    with torch.no_grad():
        result["output"] = model(torch.arange(5, 25).view(2, 10))[0].tolist()
    for name in others:
        other, info = load(name)
        result["heads"][name] = {
            "class": type(other).__name__,
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
        }
    model.save_pretrained(Path(folder) / "again")
    dynamic = [name.split(".") for name in sys.modules if name.startswith("transformers_modules.")]
    result["code_of"] = sorted({parts[1] for parts in dynamic})
    return result


# --- in the test process -----------------------------------------------------------------------------------------


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_checkpoint(auto_class: str, folder: Path):
    vocab_size = len(json.loads((ROOT / "tokenizer.json").read_text())["model"]["vocab"])
    config = tiny_config(vocab_size=vocab_size, num_attention_heads=12, hidden_size=48, id2label=NAMES)
    model = build(getattr(transformers, auto_class), config=config)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(ROOT / file, folder)
    return model


def run_fresh_process(auto_class: str, folder: Path, cache: Path) -> dict:
    environment = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    others = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    environment["PYTHONPATH"] = os.pathsep.join(others)  # as of `make test-oldest`
    process = subprocess.run(
        [sys.executable, __file__, str(folder), auto_class],
        env=environment,
        cwd=cache,
        stdin=subprocess.DEVNULL,  # a question about trust would end in an error
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1]) | {"stderr": process.stderr}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict:
    """By Auto class: the model in memory, the folder it was saved to, and a fresh process's report about that."""
    folders = {name: tmp_path_factory.mktemp(name) for name in TASKS}
    models = {name: save_checkpoint(name, folder) for name, folder in folders.items()}
    caches = [tmp_path_factory.mktemp("cache") for _ in TASKS]
    with ThreadPoolExecutor(max_workers=2) as executor:
        reports = dict(zip(TASKS, executor.map(run_fresh_process, TASKS, folders.values(), caches), strict=True))
    return {name: (models[name], folders[name], reports[name]) for name in TASKS}


@pytest.fixture(params=TASKS)
def checkpoint(request, checkpoints):
    return checkpoints[request.param]


class TestEveryCheckpoint:
    def test_holds_the_code_files_and_runs_on_them_alone(self, checkpoint):
        _, folder, report = checkpoint
        for file in CODE_FILES:
            assert (folder / file).read_bytes() == (ROOT / file).read_bytes()
        assert report["code_of"] == [folder.name]

    def test_loads_without_a_missing_or_unexpected_key(self, checkpoint):
        assert not any(checkpoint[2]["loading_info"].values())

    def test_has_every_tensor_equal_to_the_model_in_memory(self, checkpoint):
        model, folder, report = checkpoint
        stored, state = load_file(folder / "model.safetensors"), model.state_dict()
        assert all(torch.equal(stored[name], state[name]) for name in stored)
        assert not report["unequal"]
        assert report["not_stored"] in ([], ["cls.predictions.decoder.weight"])

    def test_gives_the_outputs_of_the_model_in_memory(self, checkpoint):
        model, _, report = checkpoint
        expected = model(torch.arange(5, 25).view(2, 10))[0]
        torch.testing.assert_close(torch.tensor(report["output"]), expected, atol=1e-5, rtol=0)

    def test_has_exact_alibi_slopes_at_once(self, checkpoint):
        exponents = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]
        expected = torch.tensor([2.0**-exponent for exponent in exponents])
        assert torch.equal(torch.tensor(checkpoint[2]["slopes"]), expected)
        assert checkpoint[2]["slopes_dtype"] == "torch.float32"

    def test_uses_sdpa_by_default(self, checkpoint):
        assert checkpoint[2]["attention"] == "sdpa"

    def test_prints_no_error_and_asks_nothing(self, checkpoint):
        stderr = checkpoint[2]["stderr"]
        assert "is not supported for" not in stderr and "Traceback" not in stderr and "[y/N]" not in stderr

    def test_saved_again_is_as_complete(self, checkpoint):
        _, folder, _ = checkpoint
        for file in CODE_FILES:
            assert (folder / "again" / file).read_bytes() == (ROOT / file).read_bytes()
        first, second = (load_file(path / "model.safetensors") for path in (folder, folder / "again"))
        assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
        maps = [json.loads((path / "config.json").read_text())["auto_map"] for path in (folder, folder / "again")]
        assert maps[0].keys() == maps[1].keys() == {"AutoConfig", *TASKS}
        assert all(value.split("--")[-1] == maps[0][key] for key, value in maps[1].items())


POOLER = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
CLASSIFIER = ["classifier.bias", "classifier.weight"]


class TestMaskedLMCheckpoint:
    def test_is_tied(self, checkpoints):
        assert checkpoints["AutoModelForMaskedLM"][2]["tied"]

    def test_lacks_new_heads_alone(self, checkpoints):
        heads = checkpoints["AutoModelForMaskedLM"][2]["heads"]
        assert heads["AutoModel"]["missing"] == [name.removeprefix("bert.") for name in POOLER]
        assert heads["AutoModelForSequenceClassification"]["missing"] == POOLER + CLASSIFIER
        assert heads["AutoModelForTokenClassification"]["missing"] == CLASSIFIER
        for name, head in heads.items():
            assert head["class"] == name.replace("Auto", "DNABert2").replace("ModelFor", "For")
            assert all(key.startswith("cls.predictions.") for key in head["unexpected"])


@pytest.mark.parametrize("auto_class", ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"])
def test_a_fine_tuned_checkpoint_still_gives_its_encoder(auto_class, checkpoints):
    head = checkpoints[auto_class][2]["heads"]["AutoModel"]
    assert head["unexpected"] == CLASSIFIER
    assert all("pooler" in key for key in head["missing"])


class TestPipelines:
    def test_fill_mask(self, checkpoints):
        answers = checkpoints["AutoModelForMaskedLM"][2]["pipelines"]["fill-mask"]
        for sequence, guesses in zip(SEQUENCES, answers, strict=True):
            assert len(guesses) == 5
            scores = [guess["score"] for guess in guesses]
            assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
            for guess in guesses:  # readable: bases without spaces; a special token is left out
                filling = "" if guess["token_str"].startswith("[") else guess["token_str"]
                assert guess["sequence"] == sequence + filling + sequence

    @pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForMaskedLM"])
    def test_feature_extraction(self, checkpoints, auto_class):
        # the last hidden states, of an MLM checkpoint too
        model, _, report = checkpoints[auto_class]
        features = report["pipelines"]["feature-extraction"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[auto_class][1], trust_remote_code=True)
        for sequence, feature in zip(SEQUENCES, features, strict=True):
            expected = model.base_model(**tokenizer(sequence, return_tensors="pt")).last_hidden_state
            torch.testing.assert_close(torch.tensor(feature), expected, atol=1e-5, rtol=0)

    def test_text_classification(self, checkpoints):
        answers = checkpoints["AutoModelForSequenceClassification"][2]["pipelines"]["text-classification"]
        assert len(answers) == len(SEQUENCES)
        for answer in answers:
            assert answer["label"] in NAMES.values() and 1 / 3 <= answer["score"] <= 1

    def test_token_classification(self, checkpoints):
        model, folder, report = checkpoints["AutoModelForTokenClassification"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        for sequence, entities in zip(SEQUENCES, report["pipelines"]["token-classification"], strict=True):
            logits = model(**tokenizer(sequence, return_tensors="pt")).logits[0, 1:-1]
            assert [entity["entity"] for entity in entities] == [NAMES[label] for label in logits.argmax(-1).tolist()]
            assert entities[0]["start"] == 0 and entities[-1]["end"] == len(sequence)


if __name__ == "__main__":
    print(json.dumps(report(*sys.argv[1:])))
