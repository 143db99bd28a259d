"""The converter, on releases made here: the released names, shapes and files, other weights.

pytest tests/test_convert.py
"""

import contextlib
import json
import sys

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from models import CODE_FILES, ROOT, ReleasedCase, larger_case, load, tiny_case, worst
from released import (
    DECODER,
    EMBEDDINGS,
    RELEASED_CONFIG,
    SMALL,
    in_a_fresh_process,
    pooler_and_classifier,
    release,
    released_shapes,
    released_weights,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from dnabert2 import released_files
from dnabert2.convert import convert


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(release, output, what was said) of a small masked language model."""
    folder = tmp_path_factory.mktemp("small")
    source, output = release(folder / "DNABERT-2"), folder / "output"
    return source, output, convert(str(source), output)


# --- good ones ---------------------------------------------------------------------------------------------------


class TestTheRelease:
    def test_keeps_every_tensor(self, converted):
        source, output, said = converted
        released, ours = (
            torch.load(source / "pytorch_model.bin", weights_only=True),
            load_file(output / "model.safetensors"),
        )
        assert ours.keys() == released.keys() - {DECODER}  # which is tied
        assert all(torch.equal(tensor, released[name]) for name, tensor in ours.items())
        assert f"all {len(released)} tensors" in said and "DNABert2ForMaskedLM" in said

    def test_states_the_missing_pooler_and_the_pad_token(self, converted):
        assert "no pooler" in converted[2]
        assert "pad_token_id is 3, as in tokenizer.json; it was 0" in converted[2]
        assert "left out of config.json: alibi_starting_size," in converted[2]

    def test_has_this_packages_code_and_configuration(self, converted):
        _, output, _ = converted
        for file in (*CODE_FILES, "handler.py", "requirements.txt"):
            assert (output / file).read_bytes() == (ROOT / file).read_bytes()
        config, root = (json.loads((folder / "config.json").read_text()) for folder in (output, ROOT))
        assert config["auto_map"] == root["auto_map"] and config["model_type"] == root["model_type"]
        assert config["architectures"] == ["DNABert2ForMaskedLM"]
        assert config["pad_token_id"] == 3 and config["low_precision_layernorm"] is False
        assert {name: config[name] for name in SMALL} == SMALL
        assert not config.keys() & {"alibi_starting_size", "torch_dtype", "position_embedding_type"}

    def test_keeps_the_tokenizer_to_the_byte(self, converted):
        source, output, _ = converted
        assert (output / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
        assert tokenizer("AATTG")["input_ids"] == [1, 9, 10, 7, 2]
        assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (3, 4)

    def test_has_a_card_that_names_its_origin(self, converted):
        card = ModelCard.load(converted[1] / "README.md")
        assert card.data.pipeline_tag == "fill-mask" and card.data.library_name == "transformers"
        assert "# DNABERT-2\n" in card.text and "no pooler" in card.text
        assert str(converted[0].parent) not in card.content
        code = card.text.split("```python\n")[1].split("```")[0]
        names = {}
        with contextlib.chdir(converted[1]):
            exec(compile(code, "card", "exec"), names)
        assert names["model"].config.hidden_size == SMALL["hidden_size"]

    def test_is_not_run(self, converted):
        assert not (converted[0] / "was_run").exists()

    def test_is_served_in_bases_without_spaces(self, converted, monkeypatch):
        monkeypatch.syspath_prepend(converted[1])
        monkeypatch.delitem(sys.modules, "handler", raising=False)
        from handler import EndpointHandler

        for guess in EndpointHandler(str(converted[1]))({"inputs": "aattg[mask]acgu", "parameters": {"top_k": 16}}):
            filling = "" if guess["token_str"].startswith("[") else guess["token_str"]
            assert guess["sequence"] == f"AATTG{filling}ACGT"


LOAD = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

model, info = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model(**tokenizer("ACGTACGTTTGACA", return_tensors="pt")).logits
state = model.state_dict()
print(json.dumps({
    "problems": [str(problem) for problem in info.values() if problem],
    "parameters": model.num_parameters(),
    "sums": {name: tensor.double().sum().item() for name, tensor in state.items()},
    "shape": list(logits.shape),
    "finite": bool(logits.isfinite().all()),
}))
"""


def test_a_whole_117m_release_loads_in_a_fresh_process(tmp_path):
    weights = {name: torch.zeros(shape) for name, shape in released_shapes(RELEASED_CONFIG).items()}
    generator = torch.Generator().manual_seed(0)
    for number, tensor in enumerate(weights.values()):
        rows = tensor.view(-1)[: 2**16]  # some of it random: all would take longer
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02 + number * 1e-4)
    weights[DECODER] = weights[EMBEDDINGS]
    source = release(tmp_path / "released", weights, **{name: RELEASED_CONFIG[name] for name in SMALL})
    assert "117.1 million parameters" in convert(str(source), tmp_path / "output")
    (source / "pytorch_model.bin").unlink()

    done = in_a_fresh_process(LOAD, tmp_path / "output", home=tmp_path)
    (tmp_path / "output" / "model.safetensors").unlink()  # half a gigabyte
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["problems"] == [] and seen["finite"]
    assert seen["shape"][-1] == 4096
    assert seen["sums"].keys() == weights.keys()
    for name, total in seen["sums"].items():
        assert total == pytest.approx(weights[name].double().sum().item(), abs=1e-6), name


def test_the_released_names_and_shapes_are_those_of_the_real_one(reference):
    assert released_shapes(RELEASED_CONFIG) == json.loads((reference / "param_shapes_117M_mlm.json").read_text())


def test_the_real_tokenizer_works_as_it_is(reference, tmp_path):
    tokenizer = (reference / "released_tokenizer.json").read_text()
    output = tmp_path / "output"
    convert(str(release(tmp_path / "released", tokenizer=tokenizer, vocab_size=4096)), output)
    loaded = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    assert (output / "tokenizer.json").read_text() == tokenizer
    sequence = "ACGTAGCATCGGATCTATCTATCGACACTTGG"
    assert loaded(sequence)["input_ids"] == Tokenizer.from_str(tokenizer).encode(sequence).ids
    assert (loaded.pad_token_id, loaded.mask_token_id, loaded.cls_token_id) == (3, 4, 1)


# --- the same numbers --------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=("tiny", "a_h64_heads4_rightpad", "b_h96_heads12_mixedpad", "c_h64_heads4_longer_than_alibi"),
)
def case(request) -> ReleasedCase:
    """The tiny case always, the larger ones where the fixture `reference` finds them."""
    return (
        tiny_case() if request.param == "tiny" else larger_case(request.getfixturevalue("reference") / request.param)
    )


@pytest.mark.usefixtures("no_grad")
class TestEqualsTheRelease:
    """Its weights fed in as a `.bin`, computed in float64."""

    def convert(self, case, folder, auto_class, *heads, rename=str):
        weights = {name: tensor for name, tensor in case.weights.items() if name.startswith(("bert.", *heads))}
        if "cls." in heads:
            weights = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
        source = release(
            folder / "released", {rename(name): tensor for name, tensor in weights.items()}, **case.config
        )
        convert(str(source), folder / "output")
        model, info = load(auto_class, folder / "output", dtype=torch.float64, output_loading_info=True)
        assert not any(info.values())
        return model

    def test_as_a_masked_language_model(self, case, tmp_path):
        model = self.convert(case, tmp_path, AutoModelForMaskedLM, "cls.")
        outputs = model(**case.inputs, labels=case.mlm_labels)
        assert worst(outputs.loss, case.mlm_loss_of_all_labels) < 1e-10
        if "mlm_logits" in case.outputs:
            logits, released, tolerance = outputs.logits, case.outputs["mlm_logits"], 1e-10
        else:  # those at the labels that the release knows, stored in float32
            logits, released = outputs.logits[case.mlm_labels > 0], case.outputs["mlm_logits_at_labels"]
            tolerance = 1e-6 * released.abs().max()
        assert worst(logits, released) < tolerance
        hidden_states = model.base_model(**case.inputs).last_hidden_state
        assert worst(hidden_states, case.outputs["last_hidden_state"]) < 1e-10

    @pytest.mark.parametrize("rename", [str, lambda name: name.removeprefix("bert.")], ids=["bert.", "no prefix"])
    def test_as_an_encoder(self, case, tmp_path, rename):
        outputs = self.convert(case, tmp_path, AutoModel, rename=rename)(**case.inputs)
        assert worst(outputs.last_hidden_state, case.outputs["last_hidden_state"]) < 1e-10
        assert worst(outputs.pooler_output, case.outputs["pooled_output"]) < 1e-10

    def test_as_a_classifier(self, case, tmp_path):
        model = self.convert(case, tmp_path, AutoModelForSequenceClassification, "classifier.")
        outputs = model(**case.inputs, labels=case.cls_labels)
        assert worst(outputs.logits, case.outputs["cls_logits"]) < 1e-10
        assert worst(outputs.loss, case.outputs["cls_loss"]) < 1e-10


class TestOthersOfTheFamily:
    """DNABERT-S is an encoder alone; users have classifiers, half precision and safetensors."""

    @pytest.mark.parametrize("prefix", ["bert.", ""])
    @pytest.mark.parametrize("has_pooler", [True, False])
    def test_an_encoder(self, tmp_path, prefix, has_pooler):
        every = released_weights(RELEASED_CONFIG | SMALL) | pooler_and_classifier(SMALL)
        names = [name for name in every if name.startswith("bert.") and (has_pooler or "pooler" not in name)]
        weights = {prefix + name.removeprefix("bert."): every[name] for name in names}
        said = convert(str(release(tmp_path / "DNABERT-S", weights)), tmp_path / "output")
        assert "DNABert2Model" in said and f"It has {'a' if has_pooler else 'no'} pooler" in said
        assert f"{0 if prefix else len(weights)} have their names, {len(weights) if prefix else 0} another" in said
        model, info = load(AutoModel, tmp_path / "output", output_loading_info=True)
        assert info["missing_keys"] == (set() if has_pooler else {"pooler.dense.weight", "pooler.dense.bias"})
        assert not info["unexpected_keys"]
        assert torch.equal(model.embeddings.word_embeddings.weight, every[EMBEDDINGS])

    def test_a_classifier_with_the_names_of_its_labels(self, tmp_path):
        weights = released_weights(RELEASED_CONFIG | SMALL) | pooler_and_classifier(SMALL)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("cls.")}
        names = {"0": "promoter", "1": "enhancer", "2": "neither"}
        labels = {"id2label": names, "problem_type": "single_label_classification"}
        said = convert(str(release(tmp_path / "tuned", weights, **labels)), tmp_path / "output")
        assert "DNABert2ForSequenceClassification" in said and "It has a pooler" in said
        model, info = load(AutoModelForSequenceClassification, tmp_path / "output", output_loading_info=True)
        assert not any(info.values())
        assert list(model.config.id2label.values()) == list(names.values())
        assert model.config.problem_type == "single_label_classification"
        assert ModelCard.load(tmp_path / "output" / "README.md").data.pipeline_tag == "text-classification"

    def test_a_pooler_beside_an_mlm_head_is_kept(self, tmp_path):
        weights = released_weights(RELEASED_CONFIG | SMALL) | pooler_and_classifier(SMALL)
        weights = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
        assert "It has a pooler" in convert(str(release(tmp_path / "both", weights)), tmp_path / "output")
        _, info = load(AutoModel, tmp_path / "output", output_loading_info=True)
        assert not info["missing_keys"]
        _, info = load(AutoModelForMaskedLM, tmp_path / "output", output_loading_info=True)
        assert not info["missing_keys"]

    def test_half_precision_and_safetensors_stay_so_and_are_preferred(self, tmp_path):
        weights = {name: tensor.bfloat16() for name, tensor in released_weights(RELEASED_CONFIG | SMALL).items()}
        source = release(tmp_path / "half", {})
        del weights[DECODER]  # safetensors have tied weights once
        save_file(weights, source / "model.safetensors")
        assert "model.safetensors" in convert(str(source), tmp_path / "output")
        ours = load_file(tmp_path / "output" / "model.safetensors")
        assert all(torch.equal(ours[name], tensor) for name, tensor in weights.items())
        assert (
            AutoModelForMaskedLM.from_pretrained(tmp_path / "output", trust_remote_code=True).dtype == torch.bfloat16
        )

    def test_an_old_bin_that_is_no_zip(self, tmp_path):
        source, weights = release(tmp_path / "old", {}), released_weights(RELEASED_CONFIG | SMALL)
        torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        convert(str(source), tmp_path / "output")
        assert torch.equal(load_file(tmp_path / "output" / "model.safetensors")[EMBEDDINGS], weights[EMBEDDINGS])

    def test_into_a_folder_that_is_there_and_empty(self, converted, tmp_path):
        convert(str(converted[0]), tmp_path)
        assert (tmp_path / "model.safetensors").exists()


# --- the Hub -----------------------------------------------------------------------------------------------------


def test_files_of_a_branch_are_those_of_one_commit(tmp_path, monkeypatch):
    source, asked = release(tmp_path / "released"), []
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, source / "model.safetensors")

    def download(repo: str, name: str, revision: str | None) -> str:
        """As huggingface_hub, into a folder of the commit's name."""
        asked.append(revision)
        commit = tmp_path / ("newest" if revision == "main" else revision)
        commit.mkdir(exist_ok=True)
        (commit / name).symlink_to(source / name)
        return str(commit / name)

    monkeypatch.setattr(released_files, "hf_hub_download", download)
    convert("user/name", tmp_path / "output", "main")
    assert asked == ["main", "newest", "newest"]


CONVERT_ALL = """
import json, sys
from dnabert2 import convert
from dnabert2.errors import UsageError

seen = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        convert.main()
        seen.append(None)
    except UsageError as error:
        seen.append(str(error))
print(json.dumps(seen))
"""


def test_converts_by_name_and_tells_what_the_hub_says(tmp_path):
    source, name = release(tmp_path / "released"), "zhihan1996/DNABERT-2-117M"
    runs = [
        [name, "output"],
        [name, "at_revision", "--revision", "first"],
        [name, "no_revision", "--revision", "none"],
        ["user/missing", "missing"],
        ["user/empty", "empty"],
    ]
    with HubServer() as hub:
        hub.add_repo("model", name, source)
        hub.repositories["model", name].commit({}, branch="first")
        hub.add_repo("model", "user/empty", {"config.json": (source / "config.json").read_bytes()})
        environment = hub.environment(tmp_path / "home")
        done = in_a_fresh_process(CONVERT_ALL, json.dumps(runs), home=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert not any(".py" in request for request in hub.requests)
    said, errors = done.stdout, json.loads(done.stdout.splitlines()[-1])
    assert errors[:2] == [None, None] and said.startswith(f"{name}: all ")
    assert errors[2].startswith(f"{name}: not a folder here, and on the Hub: ") and "404" in errors[2]
    assert errors[3].startswith("user/missing: not a folder here, and on the Hub: ")
    assert errors[4].startswith("user/empty: has no tokenizer.json")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("output", "at_revision"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert ModelCard.load(tmp_path / "output" / "README.md").data.base_model == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_revision", "home", "output", "released"]
