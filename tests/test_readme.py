"""Every code block of README.md, run as it stands but for the sizes in `SMALLER`; and what the README says as a card.

pytest tests/test_readme.py        # pytest -m gpu tests/test_readme.py for the blocks that need one

The blocks run in README's order in one folder, which has the repository's files and small inputs under the names that
the README uses, against a Hub of our own: the Python that runs them is kept warm (`warm_python`).
"""

import gzip
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gue_runs
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from models import ROOT
from released import release
from transformers import BertConfig, BertForMaskedLM
from warm_python import WarmPython

from dnabert2 import cards
from dnabert2.loading import load_tokenizer
from dnabert2.synthetic import write_corpus


README = (ROOT / "README.md").read_text()
SMALLER = {  # what the README's commands would run for minutes to months
    r"--max_train_steps \d+": "--max_train_steps 2",
    r"--total_train_batch_size \d+": "--total_train_batch_size 8 --per_device_train_batch_size 8",
    r"--(checkpointing|eval)_steps \d+": r"--\1_steps 1",
    r"(finetune|run_gue.py) (--model_name_or_path (?!output/(mine|lora)/))": (  # what trains, and does not predict
        r"\1 --max_train_steps 1 --total_train_batch_size 8 \2"
    ),
    "configs/tiny.json": "configs/tiny.json --config_overrides hidden_size=32,intermediate_size=32",
}
SMALLER_ON_GPU = {  # the 117M stays
    "--output_dir": "--max_train_steps 4 --total_train_batch_size 64 --output_dir",
    r"--per_device_train_batch_size \d+": "--per_device_train_batch_size 8",
    r"--num_processes \d+": "--num_processes 2",
    r"--(checkpointing|eval)_steps \d+": r"--\1_steps 2",
}


@dataclass
class Run:
    """How a block is run."""

    leaves: str = ""  # files that are there afterwards
    says: str = ""  # a regular expression of what it prints
    after: str = ""  # a block that makes what it takes
    launches: bool = False  # by the real commands: accelerate's, for one of all


@dataclass
class InCI:
    """A block of make: .ci/run calls these."""

    targets: tuple[str, ...]


@dataclass
class OnGPU:
    """How a block is run on so many GPUs."""

    leaves: str
    gpus: int = 1


MODEL = "model.safetensors config.json modeling_dnabert2.py tokenizer.json"
BLOCKS = {  # by the heading that it stands under, with a number where it is not the first there
    "DNABERT-2": InCI(("pretrain", "test")),
    "Install": InCI(("setup",)),
    "Install 2": Run(leaves="../home/accelerate/default_config.yaml"),
    "Use": Run(says=r"GAGGC"),
    "Use 2": Run(says=r"torch\.Size\(\[2, 384\]\)"),
    "The released checkpoint": Run(leaves="output/released/model.safetensors", says=r"all 32 tensors[^§]* no pooler"),
    "Serve": Run(says=r"'token_str': .*\n2 384\n"),
    "Pretrain": Run(
        leaves="output/tiny/model.safetensors output/tiny/checkpoint-2/config.json output/tiny/curves.png",
        launches=True,
    ),
    "Pretrain 2": OnGPU("output/117M/model.safetensors"),
    "Pretrain 3": OnGPU("output/117M_on_8/model.safetensors", gpus=2),
    "A tokenizer of your own": Run(leaves="my_tokenizer/report.md output/my_tokens/model.safetensors"),
    "Sequences": Run(
        leaves="output/even/metrics.jsonl output/further/curves.png output/hub/model.safetensors "
        "output/stream/pretraining shared/cache curves.png",
    ),
    "Fine-tune": Run(
        leaves="output/mine/gue_results.md output/mine/my_task/seed-42/model.safetensors "
        "output/predicted/predictions.csv output/lora/my_task/seed-42/adapter_model.safetensors "
        "output/predicted_lora/predictions.csv output/numbers/gue_results.json",
    ),
    "Fine-tune 2": Run(
        leaves="output/gue/mouse/3/seed-44/model.safetensors output/gue/gue_results.png output/strands/gue_results.md "
        "output/kmers/gue_results.md output/further_gue/gue_results.md output/two/gue_results.md",
    ),
    "Push to the Hub": Run(
        leaves="output/pushed/model.safetensors card.md", says="(?s)(Pushed.*){4}", after="The released checkpoint"
    ),
    "Push to the Hub 2": Run(after="Push to the Hub"),
}
NOT_RUN = ("bibtex",)  # by language


@dataclass
class Block:
    name: str
    language: str
    code: str


def read_blocks(text: str) -> dict[str, Block]:
    """The fenced blocks of code by name."""
    blocks, heading, count = {}, "", 0
    for match in re.finditer(r"^#+ ([^\n]*)$|^(```|~~~)([^\n]*)\n(.*?)^\2$", text, re.MULTILINE | re.DOTALL):
        title, _, language, code = match.groups()
        if title:
            heading, count = title, 0
        elif language not in NOT_RUN:
            count += 1
            name = heading if count == 1 else f"{heading} {count}"
            blocks[name] = Block(name, language, code)
    return blocks


FOUND = read_blocks(README)


# --- running them ----------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """What is in the repository, and the inputs that the README names."""
    folder.mkdir()
    for pattern in ("*.py", "*.json", "*.safetensors", "requirements.txt", "configs", "dnabert2"):
        for path in ROOT.glob(pattern):
            (folder / path.name).symlink_to(path)
    for seed, (kingdom, bases) in enumerate((("archaea", 50_000), ("bacteria", 50_000), ("virus", 15_000))):
        write_corpus(folder / "genomes" / kingdom, bases, seed)
    genome = (folder / "genomes" / "virus" / "alpha.fa").read_bytes()
    (folder / "genome.fa.gz").write_bytes(gzip.compress(genome))
    (folder / "new.fa").write_text("".join(f">{n}\n{row}\n" for n, (row, _) in enumerate(gue_runs.sequences(9, 5))))
    rows = (24, 8, 8)
    gue_runs.write_task(folder / "GUE" / "mouse" / "3", rows=rows)
    gue_runs.write_task(folder / "my_task", ["enhancer", "promoter"].__getitem__, rows=rows)
    gue_runs.write_task(folder / "my_numbers", lambda kind: kind * 1.5 - 0.25, rows=rows)
    size = gue_runs.kmer_tokenizer(folder / "bert3", is_overlapping=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=48, **sizes)).save_pretrained(folder / "bert3")


def add_repositories(hub: HubServer, folder: Path) -> None:
    """What the README takes from the Hub."""
    lines = [f"{sequence * 20},fungi/yeast" for sequence, _ in gue_runs.sequences(30, 7)]
    hub.add_repo("dataset", "user/genomes", {"train.csv": "\n".join(["sequence,species", *lines, ""]).encode()})
    hub.add_repo("model", "zhihan1996/DNABERT-2-117M", release(folder / "released"))


class Workplace:
    """A folder to run blocks in, each once, after those that it takes from."""

    def __init__(self, folder: Path, environment: dict[str, str], smaller: dict):
        self.folder, self.environment, self.smaller = folder, environment, smaller
        self.outputs: dict[str, str] = {}

    def run(self, name: str) -> str:
        """What the block prints; pytest fails where it does not end well, or leaves nothing."""
        if name in self.outputs:
            return self.outputs[name]
        block, how = FOUND[name], BLOCKS[name]
        if isinstance(how, Run) and how.after:
            self.run(how.after)
        if block.language == "python":
            (self.folder / "block.py").write_text(block.code)
            code = "python block.py"
        else:
            code = block.code
            for pattern, size in self.smaller.items():
                code = re.sub(pattern, size, code)
        environment = dict(self.environment)
        if isinstance(how, OnGPU) or how.launches:
            environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        process = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, f"{code}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
        missing = [path for path in how.leaves.split() if not (self.folder / path).exists()]
        assert not missing, f"{code}\n{missing}\n{process.stdout[-2000:]}"
        self.outputs[name] = process.stdout
        return process.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """For blocks that need no GPU, of which it hides all."""
    folder = tmp_path_factory.mktemp("readme")
    prepare(folder / "work")
    with HubServer() as hub:
        add_repositories(hub, folder)
        environment = hub.environment(folder / "home", user="user")
        environment |= {"HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
        with WarmPython(folder / "bin", environment) as python:
            yield Workplace(folder / "work", python.environment, SMALLER)


@pytest.mark.parametrize("name", [name for name in FOUND if isinstance(BLOCKS.get(name, Run()), Run)])
def test_a_block_runs(workplace, name):
    assert name in BLOCKS, f"{name}: a new block, of which BLOCKS does not say how it is run"
    assert FOUND[name].language in ("python", "bash")
    output = workplace.run(name)
    assert re.search(BLOCKS[name].says, output), output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name, how in BLOCKS.items() if isinstance(how, OnGPU)])
def test_a_block_runs_on_a_gpu(tmp_path, name):
    if torch.cuda.device_count() < BLOCKS[name].gpus:
        pytest.skip(f"needs {BLOCKS[name].gpus} GPUs")
    prepare(tmp_path / "work")
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    Workplace(tmp_path / "work", environment, SMALLER_ON_GPU).run(name)


@pytest.mark.parametrize("name", [name for name, how in BLOCKS.items() if isinstance(how, InCI)])
def test_a_block_of_make_is_what_ci_runs(name):
    called = set(re.findall(r"^make (\w+)", FOUND[name].code, re.M))
    assert called == {*BLOCKS[name].targets}
    script, makefile = (ROOT / ".ci" / "run").read_text(), (ROOT / "Makefile").read_text()
    for target in called:
        by_ci = [line.split()[1] for line in script.splitlines() if line.startswith("make ")]
        assert target in by_ci or any(re.search(rf"^{calls}: .*\b{target}\b", makefile, re.M) for calls in by_ci)


def test_every_block_is_run():
    assert FOUND.keys() == BLOCKS.keys()
    assert README.count("\n```") == 2 * (len(FOUND) + sum(README.count(f"\n```{language}\n") for language in NOT_RUN))


# --- what it says ----------------------------------------------------------------------------------------------------


def test_flags_that_it_names_are_there(workplace):
    commands = ["run_mlm.py", "run_gue.py", "train_tokenizer.py"]
    commands += [f"-m dnabert2.{name}" for name in ("publish", "cards", "convert", "curves")]
    asked = "\n".join(f"python {command} --help" for command in commands) + "\naccelerate launch --help"
    known = subprocess.run(
        ["bash", "-ec", asked], cwd=workplace.folder, env=workplace.environment, capture_output=True, text=True
    )
    assert known.returncode == 0, known.stderr
    of_others = {"--no-build-isolation", "--nproc_per_node", "--logdir"}  # of pip, torchrun, tensorboard
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README))
    assert named > {"--train_file", "--use_lora", "--private"}
    assert not named - of_others - set(re.findall(r"--[a-z][\w-]+", known.stdout))


def headings(path):
    """Of a Markdown file, as links name them."""
    found = re.findall(r"^#+ (.*)", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


def test_links_within_the_repository_lead_somewhere():
    links = set(re.findall(r"\]\((?!https?:)([^)]+)\)", README))
    assert len(links) > 10
    for link in links:
        name, _, heading = link.partition("#")
        path = ROOT / (name or "README.md")
        assert path.exists() and (not heading or heading in headings(path)), link


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard.load(ROOT / "README.md")


def test_it_is_the_card_of_the_weights_beside_it(card):
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "fill-mask" and card.data.mask_token == "[MASK]"
    assert "15.9 M parameters" in card.text and round(cards.count_parameters(ROOT) / 1e6, 1) == 15.9


def test_its_examples_are_what_the_weights_answer(card):
    tokenizer = load_tokenizer(ROOT)
    given = cards.examples(ROOT, "fill-mask", tokenizer)
    assert [example["text"] for example in card.data.widget] == [example["text"] for example in given]
    for stored, now in zip(card.data.widget, given, strict=True):
        assert stored["example_title"] == now["example_title"]
        scores = {answer["label"]: answer["score"] for answer in now["output"]}
        assert stored["output"][0]["score"] == max(answer["score"] for answer in stored["output"])
        for answer in stored["output"]:  # in bf16, which rounds differently from one CPU to another
            assert answer["score"] == pytest.approx(scores.get(answer["label"], 0), rel=0.2, abs=0.003)
