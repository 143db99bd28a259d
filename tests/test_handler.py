"""handler.py, called as Inference Endpoints call it: imported from a model's folder, given bodies of JSON.

pytest tests/test_handler.py
"""

import ast
import importlib.util
import json
import shutil
import sys
from configparser import ConfigParser
from itertools import chain

import pytest
import torch
from endpoints import CHECKPOINTS, MEAN, NAMES, SEQUENCES, closely, post, save, serve
from huggingface_hub import TextClassificationOutputElement
from models import ROOT, build
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name), *of) for name, of in CHECKPOINTS.items()}


@pytest.fixture(scope="module")
def handlers(folders):
    return {name: serve(folder) for name, folder in folders.items()}


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
