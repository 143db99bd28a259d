"""Masked tokens of held-out regions: how well a checkpoint tells them, beside what counting tells, and random weights.

    python benchmarks/default_checkpoint.py --model_name_or_path . --train_file genomes/ --output_dir output/judged

Regions, windows and masks are those that run_mlm.py validates on, if --train_file, --max_seq_length and
--validation_split_percentage are those of its run; of --max_windows of a species they are spread over its regions.
What counting tells is learned from the windows for training (benchmarks/ngrams.py): how often each token occurs; a
Markov model of order 5 of the bases; which token follows which. Of their variants those are taken that do best on
windows for training that were not counted. Prints tables in Markdown; these, a picture and all sums are left in
--output_dir.

A tenth of the tokens to predict are shown as they are, and a tenth as another token, as in BERT. The checkpoint has
learned that, and that alone makes a tenth of its answers right: so the counts are told of it, too, and where [MASK]
itself is shown is told apart.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from ngrams import Counts, Markov, TokenFrequencies, TokenPairs, count
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForMaskedLM

from dnabert2.batches import IGNORE_INDEX, MaskedWindows, Masking
from dnabert2.corpus import prepare_corpus
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.loading import errors_name, fastest_attention, is_trusted, load_model, load_tokenizer, set_attention
from dnabert2.sources import file_sources
from dnabert2.validation import COLUMNS, by_kingdom
from dnabert2.windows import Windows


BATCH_ROWS = {"cpu": 32, "cuda": 256}
MLM_PROBABILITY = 0.15  # run_mlm.py's default
EVERY = 50  # a window in so many for training is not counted, but chooses between variants
SHOWN = ("[MASK]", "a token")
NAMES = ("checkpoint", "Markov", "token pairs", "token frequencies", "random weights")

Sums = dict[str, dict[str, dict[str, dict[str, float]]]]  # by predictor, what is shown, species: `validation.COLUMNS`


def spread_rows(rows: np.ndarray, most: int | None) -> np.ndarray:
    """At most so many of them, evenly spread."""
    return rows if most is None or len(rows) <= most else rows[np.arange(most) * len(rows) // most]


@torch.no_grad()
def judge(predictors: dict[str, torch.nn.Module], dataset: MaskedWindows, rows: np.ndarray, device: str) -> Sums:
    """
    What each predictor makes of the masked tokens of these rows: the same sums as `validation.validate`'s, but apart
    for tokens that are shown as [MASK] and for those shown as a token.

    Args:
        predictors: on the device; with the arguments and logits of DNABERT-2 for masked language modelling.
    """
    sums = {name: {shown: {} for shown in SHOWN} for name in predictors}
    species = np.array(dataset.windows.species)[dataset.windows.part_of(rows)]
    for start in tqdm(range(0, len(rows), BATCH_ROWS[device]), desc="Judging", leave=False):
        batch = dataset.__getitems__([(0, row) for row in rows[start : start + BATCH_ROWS[device]]])
        labels, positions = batch.pop("labels").to(device), batch["prediction_positions"]
        batch = {key: tensor.to(device) for key, tensor in batch.items()}
        its_species = species[start + positions.numpy() // batch["input_ids"].shape[1]]
        is_mask = (batch["input_ids"].flatten()[batch["prediction_positions"]] == dataset.masking.mask_token_id).cpu()
        is_label = labels != IGNORE_INDEX
        for name, predictor in predictors.items():
            logits = predictor(**batch).logits.float()
            losses = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
            values = torch.stack([losses, logits.argmax(dim=-1) == labels, is_label], dim=1).double().cpu().numpy()
            for shown, is_it in zip(SHOWN, (is_mask.numpy(), ~is_mask.numpy()), strict=True):
                for its_name in np.unique(its_species):
                    chosen = is_it & is_label.cpu().numpy() & (its_species == its_name)
                    row = sums[name][shown].setdefault(str(its_name), dict.fromkeys(COLUMNS, 0.0))
                    for column, value in zip(COLUMNS, values[chosen].sum(axis=0), strict=True):
                        row[column] += float(value)
    return sums


def total(tables: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    return {column: sum(row[column] for table in tables for row in table.values()) for column in COLUMNS}


def loss_and_accuracy(row: dict[str, float]) -> tuple[float, float]:
    """Nats a token, and percent."""
    return row["loss"] / row["masked_tokens"], 100 * row["correct"] / row["masked_tokens"]


def of_kingdoms(sums: Sums, shown: tuple[str, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """By kingdom, with "all" first, and predictor the sums over what is shown so."""
    found = defaultdict(dict)
    for name, tables in sums.items():
        found["all"][name] = total([tables[kind] for kind in shown])
        kingdoms = [by_kingdom(tables[kind]) for kind in shown]
        for kingdom in sorted(set().union(*kingdoms)):
            found[kingdom][name] = total([{kingdom: table[kingdom]} for table in kingdoms if kingdom in table])
    return found


def markdown(sums: Sums) -> str:
    """Losses and accuracies by kingdom, of all masked tokens and of those shown as [MASK]."""
    lines = []
    for title, shown in (
        ("all masked tokens", SHOWN),
        ("shown as [MASK]", SHOWN[:1]),
        ("shown as a token", SHOWN[1:]),
    ):
        kingdoms = of_kingdoms(sums, shown)
        names = [name for name in NAMES if name in sums]
        if shown == SHOWN[1:]:
            kingdoms = {"all": kingdoms["all"]}
        lines += [f"| {title} | tokens | {' | '.join(names)} |", "|---|--:|" + "--:|" * len(names)]
        for kingdom, row in kingdoms.items():
            cells = ["{:.3f}, {:.1f} %".format(*loss_and_accuracy(row[name])) for name in names]
            kingdom = f"**{kingdom}**" if kingdom == "all" else kingdom
            lines.append(f"| {kingdom} | {row[names[0]]['masked_tokens']:,.0f} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(sums: Sums, path: Path):
    """Loss and accuracy on tokens shown as [MASK], by kingdom."""
    kingdoms = of_kingdoms(sums, SHOWN[:1])
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, index, label in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("nats", "% right"), strict=True):
        for name, marker in zip(NAMES, "os^dx", strict=True):
            values = [loss_and_accuracy(row[name])[index] for row in kingdoms.values()]
            axes.plot(values, range(len(kingdoms)), marker, label=name)
        axes.set_xlabel(f"{label}, tokens shown as [MASK]")
        axes.grid(axis="y", alpha=0.3)
    axes.set_yticks(range(len(kingdoms)), kingdoms)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def choose(variants: dict[str, torch.nn.Module], dataset: MaskedWindows, rows: np.ndarray, device: str) -> dict:
    """Losses of variants on these rows, the best one's first."""
    sums = judge({name: variant.to(device) for name, variant in variants.items()}, dataset, rows, device)
    losses = {name: loss_and_accuracy(total([*tables.values()]))[0] for name, tables in sums.items()}
    return dict(sorted(losses.items(), key=lambda item: item[1]))


def rows_to_count(windows: Windows, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows for training to count, at most so many of a species, and those to choose by."""
    counted, choosing = [], []
    for rows in windows.rows_by_species().values():
        is_choosing = np.arange(len(rows)) % EVERY == EVERY - 1
        counted.append(spread_rows(rows[~is_choosing], most))
        choosing.append(spread_rows(rows[is_choosing], 20))
    return np.concatenate(counted), np.concatenate(choosing)


def best_counts(counts: Counts, dataset: MaskedWindows, rows: np.ndarray, device: str) -> tuple[dict, dict]:
    """The predictors that count, each in its best variant, and the losses of all variants on these rows."""
    variants = {"Markov": Markov.variants(counts), "token pairs": TokenPairs.variants(counts)}
    losses = {name: choose(of_kind, dataset, rows, device) for name, of_kind in variants.items()}
    best = {name: variants[name][next(iter(losses[name]))] for name in variants}
    return best | {"token frequencies": TokenFrequencies(counts).to(device)}, losses


def load_models(args: argparse.Namespace, tokenizer, device: str) -> dict[str, torch.nn.Module]:
    """The checkpoint, and its architecture with random weights; on a GPU in bf16."""
    name, trust = args.model_name_or_path, is_trusted(args.model_name_or_path, args.trust_remote_code)
    models = {"checkpoint": load_model(name, tokenizer, trust)}
    with errors_name(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust)
        torch.manual_seed(0)
        models["random weights"] = AutoModelForMaskedLM.from_config(config, trust_remote_code=trust)
    precision, dtype = ("bf16", torch.bfloat16) if device == "cuda" else ("no", torch.float32)
    for model in models.values():
        set_attention(model, fastest_attention(device, precision), device, precision)
        model.to(device, dtype).eval()
    return models


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="pretrained model: a folder or a Hub name")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model on the Hub")
    parser.add_argument("--train_file", nargs="+", required=True, help="as of run_mlm.py: what it was trained on")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens a window (default: 128)")
    parser.add_argument("--validation_split_percentage", type=float, default=1.0, help="held out (default: 1)")
    parser.add_argument("--reverse_complement", action="store_true", help="the training part has both strands")
    parser.add_argument("--cache_dir", default="~/.cache/dnabert2", help="as of run_mlm.py")
    parser.add_argument("--max_windows", type=int, help="of each species, to judge by (default: all)")
    parser.add_argument("--max_train_windows", type=int, help="of each species, to count (default: all)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for sums, tables and picture")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    corpus = prepare_corpus(
        file_sources(args.train_file),
        tokenizer,
        max_seq_length=args.max_seq_length,
        cache_dir=args.cache_dir,
        validation_percentage=args.validation_split_percentage,
        both_strands=args.reverse_complement,
    )
    if not len(corpus.validation):
        raise UsageError("no region is held out: give larger files, or a higher --validation_split_percentage")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    masking = Masking(tokenizer, MLM_PROBABILITY)
    train, held_out = (MaskedWindows(windows, masking, seed=0) for windows in (corpus.train, corpus.validation))
    counted, choosing = rows_to_count(corpus.train, args.max_train_windows)
    counts = count(corpus.train, counted, tokenizer)
    predictors, losses = best_counts(counts, train, choosing, device)
    predictors |= load_models(args, tokenizer, device)
    species_rows = corpus.validation.rows_by_species().values()
    rows = np.concatenate([spread_rows(rows, args.max_windows) for rows in species_rows])
    sums = judge(predictors, held_out, rows, device)
    facts = {"windows": len(rows), "counted_windows": len(counted), "variants": losses, "sums": sums}
    write_whole(args.output_dir / "default_checkpoint.json", json.dumps(facts, indent=2) + "\n")
    text = f"{len(rows):,} windows of {len(corpus.validation):,} judged, {len(counted):,} counted.\n\n"
    for name, of_variants in losses.items():
        told = "; ".join(f"{variant} {loss:.3f}" for variant, loss in of_variants.items())
        text += f"{name}, chosen by {len(choosing):,} windows: {told}\n\n"
    text += markdown(sums)
    write_whole(args.output_dir / "default_checkpoint.md", text)
    draw(sums, args.output_dir / "default_checkpoint.png")
    print(text)


if __name__ == "__main__":
    run_script(main)
