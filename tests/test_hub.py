"""Pushing by the scripts, with the real clients, to the test Hub; and what was pushed, loaded in a fresh process.

One launched run of run_mlm.py with its checkpoints, then the other scripts in one process (`hub_runs`), then this file
run as a script, with a clean cache, that prints what it saw as JSON.
"""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gue_runs
import mlm_runs
import pytest
from hub_server import ROUTES, HubServer
from huggingface_hub import close_session, constants, get_session
from huggingface_hub.utils import _http
from released import release

from dnabert2 import publish
from dnabert2.convert import convert
from dnabert2.errors import UsageError


ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_user"
CODE = {f"{name}_dnabert2.py" for name in ("modeling", "configuration", "attention", "kernels")}
MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *CODE, "README.md"}
SERVING = {"handler.py", "requirements.txt"}
SEQUENCES = ["ACGTTGCATGCCATGAATTTAACGCG", "TTTATATATTTAAATTATATAAAT"]


# --- in the fresh process --------------------------------------------------------------------------------------------


def run_card_code(card_text: str) -> None:
    """What a card says to run."""
    for block in card_text.split("```python\n")[1:]:
        exec(compile(block.split("```")[0], "card", "exec"), {})


def load(sha: str, folders: dict[str, str]) -> dict:
    """Loads user/dna, user/classifier, user/adapter and user/converted; `folders` are where the same lies."""
    import contextlib

    import torch
    from huggingface_hub import ModelCard
    from transformers import (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        pipeline,
    )

    sys.path.insert(0, str(ROOT))
    from dnabert2.classifiers import load_finetuned

    trust = {"trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained("user/dna", revision=sha, **trust)
    inputs = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    report: dict = {"difference": {}, "cards": {}, "pipelines": {}}

    def compare(name: str, pushed, local, output: str = "logits", inputs: dict = inputs):
        with torch.no_grad():
            ours, theirs = (getattr(model.eval()(**inputs), output) for model in (pushed, local))
        report["difference"][name] = (ours - theirs).abs().max().item()

    masked = AutoModelForMaskedLM.from_pretrained("user/dna", revision=sha, **trust)
    report["class"] = f"{type(masked).__module__.split('.')[-1]}.{type(masked).__name__}"
    compare("masked", masked, AutoModelForMaskedLM.from_pretrained(folders["dna"], **trust))
    base = AutoModel.from_pretrained("user/dna", revision=sha, **trust)
    compare("base", base, masked.base_model, "last_hidden_state")
    headed = AutoModelForSequenceClassification.from_pretrained("user/dna", revision=sha, num_labels=3, **trust)
    compare("with a head", headed.base_model, base, "last_hidden_state")
    classifier = AutoModelForSequenceClassification.from_pretrained("user/classifier", **trust)
    local = AutoModelForSequenceClassification.from_pretrained(folders["classifier"], **trust)
    compare("classifier", classifier, local)
    report["labels"] = classifier.config.id2label
    converted = AutoModelForMaskedLM.from_pretrained("user/converted", **trust)
    local = AutoModelForMaskedLM.from_pretrained(folders["converted"], **trust)
    its_own = AutoTokenizer.from_pretrained("user/converted", **trust)
    compare("converted", converted, local, inputs=its_own(SEQUENCES, padding=True, return_tensors="pt"))

    for name in ("dna", "classifier", "adapter", "converted"):
        card = ModelCard.load(f"user/{name}")
        card.validate()
        report["cards"][name] = {"data": card.data.to_dict(), "text": card.text}
        with contextlib.redirect_stdout(sys.stderr):
            run_card_code(card.text)
    for name, task in (("dna", "fill-mask"), ("classifier", "text-classification")):
        ask = pipeline(task, model=f"user/{name}", device="cpu", **trust)
        texts = [example["text"] for example in report["cards"][name]["data"]["widget"]]
        report["pipelines"][name] = [ask(text, top_k=5) for text in texts]

    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from transformers import AutoConfig

    sys.path.insert(0, snapshot_download("user/converted"))  # as an endpoint has it
    from handler import EndpointHandler

    report["handler"] = EndpointHandler(sys.path[0])({"inputs": "ACGT[MASK]TT", "parameters": {"top_k": 1}})

    config = AutoConfig.from_pretrained("user/adapter", **trust)
    whole = AutoModelForSequenceClassification.from_pretrained("user/dna", config=config, **trust)
    compare("adapter", PeftModel.from_pretrained(whole, "user/adapter"), load_finetuned(folders["adapter"], True))
    return report


# --- in the test process ---------------------------------------------------------------------------------------------


def run_fresh_process(environment: dict[str, str], *command: str) -> list | dict:
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # this file, as a script, imports the scripts
    process = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(folder):
    with HubServer() as server:
        rows = {}
        for seed, (split, count) in enumerate((("train", 64), ("dev", 22), ("test", 26))):
            lines = [f"{sequence},{'AT' if kind else 'GC'}" for sequence, kind in gue_runs.sequences(count, seed)]
            rows[f"{split}.csv"] = "\n".join(["sequence,label", *lines, ""]).encode()
        server.add_repo("dataset", "user/rows", rows)
        server.add_repo("model", "user/public", {"README.md": b"# Public\n"})
        server.add_repo("model", "other/model", {"README.md": b"# Another's\n"})
        yield server


def hold(route: str, until: threading.Event) -> Callable:
    """The answer of a route, once the event is set."""
    answer = ROUTES[route]

    def held(request, **groups):
        assert until.wait(120)
        return answer(request, **groups)

    return held


COMMIT = next(route for route in ROUTES if "/commit/" in route)


@pytest.fixture(scope="module")
def pretraining(server, folder) -> dict:
    """A launched run with a checkpoint every two steps, on a Hub that answers no commit before training is over."""
    corpus, output_dir = mlm_runs.small_corpus(folder), folder / "dna"
    options = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_private_repo": True, "hub_token": TOKEN}
    command = mlm_runs.arguments(corpus, output_dir, checkpointing_steps=2, save_total_limit=1, **options)
    launcher = "accelerate.commands.accelerate_cli launch --quiet --cpu --num_processes 1 --num_machines 1"
    launcher += " --mixed_precision no --dynamo_backend no"
    environment = server.environment(folder / "home of mlm")
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
    server.fail_next(503, 1, "POST /api/models/user/dna/commit")
    server.fail_next("cut", 1, "POST /api/models/user/dna/commit")
    output, is_over = "", threading.Event()
    with pytest.MonkeyPatch.context() as patch, (folder / "errors").open("w+") as errors:
        patch.setitem(ROUTES, COMMIT, hold(COMMIT, is_over))
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher.split(), str(ROOT / "run_mlm.py"), *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        killer = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        for line in process.stdout:
            output += line
            if line.startswith("Waiting for the push"):
                is_over.set()
        killer.cancel()
        is_over.set()
        errors.seek(0)
        return {"status": process.wait(), "output": output, "errors": errors.read(), "folder": output_dir}


LATER = "POST /api/models/user/later/commit"


@pytest.fixture(scope="module")
def others(server, folder, pretraining) -> dict[str, dict]:
    """By name, what further runs of the scripts printed."""
    assert pretraining["status"] == 0, pretraining["errors"]
    tune = {"model_name_or_path": "user/dna", "trust_remote_code": True, "dataset_name": "user/rows"}
    tune |= {"push_to_hub": True, "max_train_steps": 4, "eval_steps": 2}
    later = {"output_dir": folder / "later", "push_to_hub": True, "max_train_steps": 2, "hub_token": TOKEN}
    later |= {"with_tracking": True, "report_to": "tensorboard"}
    start = {"max_train_steps": 1, "push_to_hub": True}

    def mlm(**options) -> dict:
        output_dir = options.pop("output_dir", folder / "refused")
        return {"script": "run_mlm", "arguments": mlm_runs.arguments(folder / "corpus", output_dir, **options)}

    def gue(output_dir: Path, **options) -> dict:
        command = gue_runs.command(output_dir=output_dir, **tune | options)
        return {"script": "run_gue", "arguments": command, "token": TOKEN}

    convert(str(release(folder / "release" / "DNABERT-2")), folder / "converted")
    card = folder / "card.md"
    card.write_text("---\nlicense: mit\n---\n# A card of one's own\n")
    calls = {
        "classifier": gue(folder / "classifier", hub_strategy="checkpoint"),
        "adapter": gue(folder / "lora", hub_model_id="adapter", use_lora=True),
        "finished": gue(folder / "classifier", hub_model_id="user/again"),
        "later": mlm(**later),
        "later, by hand": {
            "script": "dnabert2.publish",
            "arguments": [str(folder / "later"), "user/later"],
            "token": TOKEN,
        },
        "a branch": {
            "script": "dnabert2.publish",
            "arguments": [str(folder / "dna" / "checkpoint-6"), "later", "--revision", "v1", "--card", str(card)],
            "token": TOKEN,
        },
        "converted": {
            "script": "dnabert2.publish",
            "arguments": [str(folder / "converted"), "user/converted", "--base_model", "zhihan1996/DNABERT-2-117M"],
            "token": TOKEN,
        },
        "the adapter as a model": {
            "script": "dnabert2.publish",
            "arguments": [str(folder / "later"), "user/adapter-no-more"],
            "token": TOKEN,
        },
        "no token": mlm(**start),
        "not a token": mlm(**start, hub_token="letmein"),
        "another's": mlm(**start, hub_model_id="other/model", hub_token=TOKEN),
        "another's, new": mlm(**start, hub_model_id="other/new", hub_token=TOKEN),
        "public": mlm(**start, hub_model_id="user/public", hub_private_repo=True, hub_token=TOKEN),
        "no name": mlm(**start, hub_model_id="user/a/b", hub_token=TOKEN),
        "nobody there": mlm(**start, hub_token=TOKEN) | {"endpoint": "http://127.0.0.1:9"},
        "no model": {"script": "dnabert2.publish", "arguments": [str(folder), "user/nothing"], "token": TOKEN},
    }
    stale = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"\0",
        "notes.md": b"kept",
        "docs/notes_dnabert2.py": b"kept",
    }
    stale |= {"special_tokens_map.json": b"{}", "gue_results.md": b"of another", "old_dnabert2.py": b""}
    server.add_repo("model", "user/adapter-no-more", stale)
    server.fail_next(500, len(publish.WAITS) + 1, LATER)
    file = folder / "calls.json"
    file.write_text(json.dumps([*calls.values()], default=str))
    results = run_fresh_process(server.environment(folder / "home"), str(ROOT / "tests" / "hub_runs.py"), str(file))
    return dict(zip(calls, results, strict=True))


@pytest.fixture(scope="module")
def loaded(server, folder, others) -> dict:
    run = Path("user", "rows", "seed-1")
    folders = {"dna": folder / "dna", "classifier": folder / "classifier" / run, "adapter": folder / "lora" / run}
    folders["converted"] = folder / "converted"
    sha = server.repositories["model", "user/dna"].at("main").sha
    environment = server.environment(folder / "clean home", user="user")
    return run_fresh_process(environment, __file__, sha, json.dumps({key: str(path) for key, path in folders.items()}))


def commits(server: HubServer, repo: str) -> list:
    return [*server.repositories["model", repo].commits.values()][1:]  # without the initial one


class TestPretraining:
    def test_goes_on_while_the_hub_does_not_answer(self, pretraining):
        assert pretraining["status"] == 0, pretraining["errors"]
        assert mlm_runs.metrics(pretraining["folder"])[-1]["step"] == 6  # no commit was answered before

    def test_pushes_the_newest_checkpoint_and_the_model_at_the_end(self, server, pretraining):
        titles = [commit.title for commit in commits(server, "user/dna")]
        assert titles == ["Step 2", "After 6 steps"]  # steps 4 and 6 gave way to what came after

    def test_pushes_what_was_pruned_meanwhile(self, server, pretraining):
        folder = pretraining["folder"]
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
        assert not [*folder.glob("push.tmp*")]
        metrics = server.repositories["model", "user/dna"].files(commits(server, "user/dna")[0].sha)["metrics.jsonl"]
        assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2]

    def test_pushes_whole_models(self, server, pretraining):
        for commit in commits(server, "user/dna"):
            assert commit.files.keys() >= MODEL | {"curves.png", "metrics.jsonl"}
        assert not [name for name in commit.files if "optimizer" in name or "state" in name]

    def test_tries_again_after_a_fault_and_a_lost_connection(self, server, pretraining):
        attempts = [line.split()[0] for line in server.requests if "POST /api/models/user/dna/commit" in line]
        assert attempts == ["503", "cut", "200", "200"]

    def test_made_a_private_repository(self, server, pretraining):
        assert server.repositories["model", "user/dna"].private

    def test_names_the_commit(self, server, pretraining):
        assert f"Pushed to {server.url}/user/dna/commit/{commits(server, 'user/dna')[-1].sha}" in pretraining["output"]


class TestFineTuning:
    def test_pushes_its_best_so_far_and_the_model(self, server, others):
        assert others["classifier"]["status"] == 0, others["classifier"]
        titles = [commit.title for commit in commits(server, "user/classifier")]
        assert titles[0] == "Step 2 of user/rows, seed 1"
        assert titles[-1] == "Fine-tuned on user/rows, seed 1"
        for commit in commits(server, "user/classifier"):
            assert commit.files.keys() >= MODEL | {"curves.png", "all_results.json"}
            assert "predictions.csv" not in commit.files

    def test_pushes_adapters(self, server, others):
        assert others["adapter"]["status"] == 0, others["adapter"]
        files = server.repositories["model", "user/adapter"].files()
        expected = MODEL - {"model.safetensors"} | {"adapter_config.json", "adapter_model.safetensors"}
        assert files.keys() >= expected and not files.keys() & {"model.safetensors", *SERVING}
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "user/dna"

    def test_pushes_a_run_that_was_finished(self, server, others):
        assert others["finished"]["status"] == 0, others["finished"]
        weights = [
            server.repositories["model", f"user/{name}"].files()["model.safetensors"]
            for name in ("classifier", "again")
        ]
        assert weights[0] == weights[1]


class TestWhatWasPushed:
    def test_has_the_same_outputs(self, loaded):
        names = {"masked", "base", "with a head", "classifier", "adapter", "converted"}
        assert loaded["difference"] == dict.fromkeys(names, 0.0)

    def test_has_the_code_of_this_repository_and_a_full_auto_map(self, server, loaded):
        auto_map = json.loads((ROOT / "config.json").read_text())["auto_map"]
        for name in ("dna", "classifier", "adapter"):
            files = server.repositories["model", f"user/{name}"].files()
            assert {code: files[code] for code in CODE} == {code: (ROOT / code).read_bytes() for code in CODE}
            assert json.loads(files["config.json"])["auto_map"] == auto_map
        assert loaded["class"] == "modeling_dnabert2.DNABert2ForMaskedLM"

    def test_has_what_an_endpoint_needs(self, server, loaded):
        for name in ("dna", "classifier", "converted"):
            files = server.repositories["model", f"user/{name}"].files()
            assert {file: files[file] for file in SERVING} == {file: (ROOT / file).read_bytes() for file in SERVING}
        assert not SERVING & server.repositories["model", "user/adapter"].files().keys()
        assert loaded["handler"][0]["sequence"].startswith("ACGT")

    def test_answers_pipelines_as_its_card_says(self, loaded):
        for name, key in (("dna", "token_str"), ("classifier", "label")):
            stored = [example["output"] for example in loaded["cards"][name]["data"]["widget"]]
            given = loaded["pipelines"][name]
            assert [[answer["label"] for answer in of_one] for of_one in stored] == [
                [answer[key] for answer in of_one] for of_one in given
            ]
            for of_one, answers in zip(stored, given, strict=True):
                scores = [answer["score"] for answer in answers]
                assert [answer["score"] for answer in of_one] == pytest.approx(scores, abs=6e-5)
        assert " " not in loaded["pipelines"]["dna"][0][0]["sequence"]

    def test_says_nothing_of_this_machine(self, server, folder, loaded):
        for (kind, name), repository in server.repositories.items():
            if kind == "model":
                for path, content in repository.files().items():
                    assert str(folder).encode() not in content, (name, path)


class TestCards:
    def test_of_pretraining(self, loaded):
        data, text = loaded["cards"]["dna"]["data"], loaded["cards"]["dna"]["text"]
        assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
        assert data["pipeline_tag"] == "fill-mask" and data["mask_token"] == "[MASK]"
        assert data["metrics"] == ["accuracy"] and "dnabert2" in data["tags"]
        assert "base_model" not in data and "model-index" not in data
        for example in data["widget"]:
            assert example["text"].count("[MASK]") == 1 and len(example["output"]) == 5
        assert "| learning_rate | 0.005 |" in text and "| max_train_steps | 6 |" in text
        assert "![curves](curves.png)" in text and "token frequencies alone" in text
        assert "; from corpus." in text and "--validation_split_percentage" not in text
        assert "[validation.md](validation.md)" in text
        assert "Hosted inference refuses" in text

    def test_of_a_classifier(self, loaded, folder):
        data, text = loaded["cards"]["classifier"]["data"], loaded["cards"]["classifier"]["text"]
        assert data["pipeline_tag"] == "text-classification"
        assert data["base_model"] == "user/dna" and data["base_model_relation"] == "finetune"
        assert data["datasets"] == ["user/rows"]
        [index] = data["model-index"]
        [result] = index["results"]
        assert result["dataset"] == {"name": "user/rows", "type": "user/rows", "split": "test"}
        test = gue_runs.results(folder / "classifier" / "user" / "rows" / "seed-1")["test"]
        values = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert values["MCC"] == pytest.approx(test["mcc"], abs=1e-6)
        assert values["AUROC"] == pytest.approx(test["auroc"], abs=1e-6)
        assert data["metrics"] == ["accuracy", "matthews_correlation", "f1", "roc_auc"]
        assert loaded["labels"] == {"0": "AT", "1": "GC"} and "Its labels are AT, GC" in text
        assert {answer["label"] for answer in data["widget"][0]["output"]} == {"AT", "GC"}

    def test_of_an_adapter(self, loaded):
        data, text = loaded["cards"]["adapter"]["data"], loaded["cards"]["adapter"]["text"]
        assert data["library_name"] == "peft" and data["base_model_relation"] == "adapter"
        assert data["base_model"] == "user/dna" and "lora" in data["tags"]
        assert "| lora_r | 8 |" in text
        assert "handler.py" not in text and "An Inference Endpoint serves whole models" in text

    def test_of_a_converted_release(self, loaded):
        data, text = loaded["cards"]["converted"]["data"], loaded["cards"]["converted"]["text"]
        assert data["base_model"] == "zhihan1996/DNABERT-2-117M" and data["pipeline_tag"] == "fill-mask"
        assert "base_model_relation" not in data and "trained from" not in text
        assert "those of [zhihan1996/DNABERT-2-117M]" in text and "converted unchanged" in text
        assert "become `[UNK]`" in text


class TestAFailedPush:
    def test_leaves_the_result_and_the_command_that_pushes_it_later(self, folder, others):
        failed = others["later"]
        command = f"python -m dnabert2.publish {folder / 'later'} user/later"
        assert failed["status"] == 1 and failed["errors"].endswith(f"{command}\n")
        assert "no pushing to user/later" in failed["errors"]
        assert failed["waits"] == list(publish.WAITS)
        assert {path.name for path in (folder / "later").iterdir()} >= MODEL - {"README.md"} | {"all_results.json"}

    def test_is_made_good_by_that_command(self, server, others):
        assert others["later, by hand"]["status"] == 0, others["later, by hand"]
        assert commits(server, "user/later")[0].files.keys() >= MODEL

    def test_of_hub_s_is_no_stack_trace(self, others):
        for name, result in others.items():
            assert "Traceback" not in result["errors"], name


class TestPublish:
    def test_gives_a_hub_up_that_never_answers(self, monkeypatch, tmp_path):
        monkeypatch.setattr(publish, "SILENCE", 0.1)
        monkeypatch.setattr(publish, "WAITS", (0.0,))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        told = []

        def ask(call: Callable):
            with pytest.raises(UsageError, match="timed out") as error:
                call()
            told.append(str(error.value))

        with socket.create_server(("127.0.0.1", 0)) as mute:  # the system accepts, and nobody answers
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
            calls = [
                lambda: publish.upload(tmp_path, "user/name", "a push", TOKEN),
                lambda: publish.open_repository("user/name", TOKEN, private=True, waits=()),
            ]
            for call in calls:
                thread = threading.Thread(target=ask, args=(call,), daemon=True)  # which could hang for ever
                thread.start()
                thread.join(30)
        assert len(told) == 2

    def test_keeps_the_limit_of_silence_in_connections_made_anew(self):
        publish.limit_silence()
        close_session()  # as huggingface_hub does after a fault
        assert get_session().timeout.read == publish.SILENCE and get_session().event_hooks["request"]

    def test_ends_in_time(self, monkeypatch):
        def ask():
            raise ConnectionError("gone")

        monkeypatch.setattr(publish, "PATIENCE", 3)
        monkeypatch.setattr(publish.time, "sleep", lambda wait: waited.append(wait))
        waited = []
        with pytest.raises(UsageError, match="gone"):
            publish.patiently(ask, "user/name", waits=(1, 2, 4, 8))
        assert waited == [1, 2]

    def test_does_not_try_again_what_the_disk_refuses(self, monkeypatch):
        def ask():
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(publish.time, "sleep", lambda _: pytest.fail("waited"))
        with pytest.raises(UsageError, match="No space left"):
            publish.patiently(ask, "user/name", waits=(1, 2))

    def test_of_a_checkpoint_with_its_own_card_goes_to_a_branch(self, server, folder, others):
        assert others["a branch"]["status"] == 0, others["a branch"]
        commit = server.repositories["model", "user/later"].at("v1")
        assert commit.title == "Step 6" and commit.files.keys() >= MODEL | {"curves.png"}
        assert commit.files["README.md"].content == (folder / "card.md").read_bytes()

    def test_leaves_nothing_of_another_model(self, server, others):
        files = server.repositories["model", "user/adapter-no-more"].files()
        assert files.keys() >= MODEL | {"notes.md", "docs/notes_dnabert2.py"}
        gone = {"adapter_config.json", "adapter_model.safetensors", "special_tokens_map.json", "gue_results.md"}
        assert not files.keys() & (gone | {"old_dnabert2.py"})

    def test_refuses_a_folder_without_a_model(self, server, others):
        assert others["no model"]["status"] == 1 and "is no model to push" in others["no model"]["errors"]
        assert ("model", "user/nothing") not in server.repositories


class TestAtTheStart:
    @pytest.mark.parametrize(
        "name, message",
        [
            ("no token", "error: the Hub wants a token that may write: set HF_TOKEN"),
            ("not a token", "error: no pushing to refused: the Hub does not know this token"),
            ("another's", "error: no pushing to other/model: this token may not write there"),
            ("another's, new", "error: no pushing to other/new: this token may not write there"),
            ("public", "error: user/public is there already, and public"),
            ("no name", "error: no pushing to user/a/b"),
            ("nobody there", "error: no pushing to refused at http://127.0.0.1:9: "),
        ],
    )
    def test_what_cannot_be_pushed_is_refused(self, folder, others, name, message):
        assert others[name]["status"] == 1 and message in others[name]["errors"], others[name]
        assert not (folder / "refused" / "metrics.jsonl").exists()


class TestTheToken:
    def test_is_nowhere(self, folder, pretraining, others):
        for result in (pretraining, *others.values()):
            assert TOKEN not in result["output"] + result["errors"]
        for name in ("dna", "later", "classifier", "lora", "refused", "cache"):
            for path in (folder / name).rglob("*"):
                assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
        assert [*(folder / "later" / "pretraining").rglob("events*")]  # a tracker was there to write it


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], json.loads(sys.argv[2]))))
