"""The model card of what is pushed to the Hub, from the template model_card.md and from what the run has left.

    python -m dnabert2.cards output/117M user/dnabert2 > card.md    # to edit, for dnabert2.publish --card

Numbers are of the run's own files and of the weights, examples of the very model in the folder. What a folder has no
record of the card does not tell.
"""

import argparse
import math
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, pipeline
from transformers.utils import logging

from dnabert2 import classifiers
from dnabert2.encoding import kmers
from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.labelled import REGRESSION
from dnabert2.loading import errors_name, load_tokenizer
from dnabert2.released_files import read_json
from dnabert2.releases import ADAPTER_CONFIG, MODEL_TYPE, add_trust, assemble, refuse_untrusted_base
from dnabert2.run_records import Record, read_record, results_of_gue, results_of_run, write_results


TEMPLATE = Path(__file__).with_name("model_card.md")
CARD = "README.md"
TASKS = {  # by the end of an architecture's name
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
}
EXAMPLES = [  # name, sequence with the bases that a mask hides in brackets
    (
        "Alu, the commonest repeat of the human genome",
        "GCCTGTAATCCCAGCACTTTGGGAGGCTGAGGCAGGAGAATCGCTTGAACCCGG[GAGGC]GGAGGTTGCAGTGAGCCGAGATCGCGCCACTGCACTCCAGCCTGGGC",
    ),
    ("Human telomere", "TTAGGGTTAGGGTTAGGGTTAGGGTTA[GGGTTA]GGGTTAGGGTTAGGGTTAGGG"),
    (
        "16S ribosomal RNA gene of E. coli, from position 515",
        "GTGCCAGCAGCCGCGGTAATACGGAGGGTGCAAGCGTTAATCGGAATTA[CTGGGC]GTAAAGCGCACGCAGGCGGTTTGTTAAGTCAGATGTGAAATCCCC",
    ),
    (
        "lac promoter and operator of E. coli",
        "CCCCAGGCTTTACACTTTATGCTTCCGGCTCGTATGTTGTGTGGAA[TTGTGA]GCGGATAACAATTTCACACAGGAAACAGCTATG",
    ),
]
SHOWN = 5  # outputs of an example


def count_parameters(release: Path) -> int:
    """Of the weights as they are stored: tied ones once."""
    count = 0
    for path in release.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return count


def _shown(outputs: list[dict], key: str) -> list[dict]:
    return [{"label": output[key], "score": round(output["score"], 4)} for output in outputs[:SHOWN]]


def examples(
    release: Path,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    kmer: int | None = None,
    trust_remote_code: bool = False,
) -> list[dict]:
    """
    What this model says of `EXAMPLES`, as the Hub's widgets take them: by `pipeline` on a CPU, as a user would ask.
    Beside that "hidden", the masked bases. Of models that are neither for masks nor for classes none.
    """
    if task not in ("fill-mask", "text-classification"):
        return []
    with errors_name(release):
        if classifiers.is_adapter(release):
            model = classifiers.load_finetuned(str(release), trust_remote_code).merge_and_unload()
            ask = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        else:
            ask = pipeline(task, model=str(release), trust_remote_code=True, device="cpu")
    found = []
    for title, sequence in EXAMPLES:
        start, hidden, end = sequence.replace("]", "[").split("[")
        if task == "fill-mask":
            text = f"{start}{tokenizer.mask_token}{end}"
            outputs = _shown(ask(text, top_k=SHOWN), "token_str")
        else:
            text = start + hidden + end if kmer is None else kmers(start + hidden + end, kmer)
            outputs = _shown(ask(text, top_k=None), "label")
        found.append({"example_title": title, "text": text, "output": outputs, "hidden": hidden})
    return found


def write_card(
    release: Path,
    folder: Path,
    repo: str,
    *,
    base_model: str | None = None,
    gue_results: Path | None = None,
    trust_remote_code: bool = False,
) -> str:
    """
    Writes README.md, results and curves beside a model that `publish.assemble` has laid out, and returns the title of
    its commit.

    Args:
        folder: the run's, that the model comes from.
        repo: where the model goes, user/name.
        base_model: Hub name of the model that it was trained from, if the run does not know it.
        gue_results: --output_dir of runs of run_gue.py with this pretrained model.
        trust_remote_code: run the code that an adapter's base has on the Hub.

    Raises:
        UsageError: for an architecture that has no task, results of another model, what `pipeline` cannot load, and
            an adapter whose base is not trusted.
    """
    refuse_untrusted_base(release, trust_remote_code)
    logging.disable_progress_bar()
    record = read_record(folder)
    config = read_json(release / "config.json")
    is_adapter = classifiers.is_adapter(release)
    architecture = "ForSequenceClassification" if is_adapter else (config.get("architectures") or [""])[0]
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    if task is None:
        raise UsageError(f"{folder}: a card needs an architecture in config.json, one for {', '.join(TASKS.values())}")
    if is_adapter:
        base_model = read_json(release / ADAPTER_CONFIG)["base_model_name_or_path"]
    base_model = base_model or record.base_model
    relation = "adapter" if is_adapter else "finetune"
    if "converted_from" in record.results:  # the weights are those of its base: the Hub has no word for that
        relation = None
    tokenizer = load_tokenizer(release)
    shown = examples(release, task, tokenizer, record.hyperparameters.get("kmer"), trust_remote_code)
    write_results(release, folder, record, gue_results)
    evaluations, datasets = results_of_gue(gue_results, folder) if gue_results else ([], [])
    if "test" in record.results:
        evaluations = results_of_run(record.results, record.dataset)
    is_ours = config["model_type"] == MODEL_TYPE
    metrics = {result.metric_type: None for result in evaluations}  # in order, each once
    validation = next((line for line in reversed(record.metrics) if "validation_loss" in line), {})  # the newest
    if validation:
        metrics |= {"accuracy": None}
    data = ModelCardData(
        license="apache-2.0" if is_ours else "unknown",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        mask_token=tokenizer.mask_token,
        tags=["biology", "genomics", "dna", *(["dnabert2"] if is_ours else []), *(["lora"] if is_adapter else [])],
        datasets=[record.dataset] if record.dataset else None,
        metrics=[*metrics] or None,
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        widget=[{key: value for key, value in example.items() if key != "hidden"} for example in shown] or None,
        eval_results=evaluations or None,
        model_name=repo.rpartition("/")[2] if evaluations else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo=repo,
        name=repo.rpartition("/")[2],
        task=task,
        is_adapter=is_adapter,
        is_ours=is_ours,
        has_code="auto_map" in config,
        is_regression=config.get("problem_type") == REGRESSION,
        config=config,
        labels=[*config.get("id2label", {}).values()] if task == "text-classification" else [],
        parameters=count_parameters(release),
        vocabulary=len(tokenizer),
        reads_n=tokenizer.tokenize("N") == ["N"],
        base=base_model,
        record=record,
        examples=shown,
        evaluations=evaluations,
        gue=datasets,
        files={path.name for path in release.iterdir()},
        validation=validation,
    )
    card.save(release / CARD)
    return _commit_title(record)


def _commit_title(record: Record) -> str:
    if record.step is not None:
        return f"Step {record.step:,}"
    if "test" in record.results:
        return f"Fine-tuned on {record.results['task']}, seed {record.results['seed']}"
    if "task" in record.results:  # and still training
        return f"Step {record.results['dev']['step']:,} of {record.results['task']}, seed {record.results['seed']}"
    return f"After {record.results['step']:,} steps" if "step" in record.results else "A release"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model's")
    parser.add_argument("repo", help="user/name, where it is to go")
    parser.add_argument("--base_model", help="Hub name of the model that this one was trained from")
    parser.add_argument("--gue_results", type=Path, help="--output_dir of run_gue.py with this model")
    add_trust(parser)
    add_debug(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as release:
        assemble(args.folder, Path(release), args.base_model)
        options = {name: getattr(args, name) for name in ("base_model", "gue_results", "trust_remote_code")}
        write_card(Path(release), args.folder, args.repo, **options)
        print((Path(release) / CARD).read_text())


if __name__ == "__main__":
    run_script(main)
