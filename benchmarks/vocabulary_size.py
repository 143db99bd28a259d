"""Eight BPE vocabularies, 2^8 to 2^15 tokens, of one sample: lengths of tokens and sequences, FLOPs, and a picture.

    python benchmarks/vocabulary_size.py --train_file genomes/ --output_dir output/vocabularies

Only the largest is trained, by train_tokenizer.py. Its first merges are what a smaller one would have learned, so
the others are cut from it. Each is a folder that AutoTokenizer, run_mlm.py and run_gue.py load, and none is made anew
if it is there; an --output_dir with vocabularies of other files is refused. tokenizer_runs.py trains models with them;
with --runs their scores are in table and picture. FLOPs are those of the 117M, for the same bases. Results:
vocabulary_size.md.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from kmers import ROOT, keep_arguments, sample_pieces, size_of
from tokenizer_runs import spread
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.sequences import expand_files
from dnabert2.throughput import training_flops_per_token
from dnabert2.tokenization import (
    PIECE_LENGTH,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    bases_per_token,
    build_tokenizer,
    tokenizer_config,
)


SIZES = [2**power for power in range(8, 16)]
CHOSEN = 4096  # by the paper
BASES_A_SEQUENCE = 640  # about the paper's 128 tokens
MLM_PROBABILITY = 0.15
LENGTHS = [*range(1, 11), "longer"]


def truncate_merges(merges: list[tuple[str, str]], vocab_size: int) -> list[tuple[str, str]]:
    """The merges that training with a smaller `vocab_size` gives: those before its vocabulary is full."""
    tokens, kept = set(), []
    for left, right in merges:
        if len(tokens) == vocab_size - SMALLEST_VOCABULARY:
            break
        tokens.add(left + right)  # two merges can spell the same token
        kept.append((left, right))
    return kept


def make_vocabularies(args: argparse.Namespace) -> dict[int, Tokenizer]:
    """Trains the largest, if it is not there, and cuts the others from it."""
    largest = args.output_dir / str(SIZES[-1])
    made_of = {"train_file": size_of(args.train_file), "max_bases": args.max_bases}
    keep_arguments(largest / "tokenizer.json", args.output_dir, made_of)
    if not (largest / "tokenizer.json").exists():
        command = [sys.executable, str(ROOT / "train_tokenizer.py"), "--train_file", *args.train_file]
        command += ["--max_bases", str(int(args.max_bases)), "--vocab_size", str(SIZES[-1])]
        command += ["--output_dir", str(largest)]
        if subprocess.run(command, check=False).returncode:
            raise UsageError("train_tokenizer.py ended with an error: see above")
    model = json.loads((largest / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizers = {size: build_tokenizer(truncate_merges(merges, size)) for size in SIZES}
    for size, tokenizer in tokenizers.items():
        folder = args.output_dir / str(size)
        if not (folder / "tokenizer.json").exists():
            folder.mkdir(exist_ok=True)
            write_whole(folder / "tokenizer_config.json", json.dumps(tokenizer_config(), indent=2) + "\n")
            write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    return tokenizers


def count_held_out(tokenizers: dict[int, Tokenizer], args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Of each kingdom (a file's folder), and in "all": held-out bases, and tokens by vocabulary, (1 + sizes,)."""
    counts = {"all": np.zeros(1 + len(tokenizers), dtype=np.int64)}
    for path in tqdm(expand_files(args.train_file), desc="Held-out pieces", unit="file"):
        if pieces := sample_pieces(path, args.pieces, PIECE_LENGTH):
            found = [bases_per_token(tokenizer, pieces) for tokenizer in tokenizers.values()]
            row = np.array([found[0][0], *(tokens for _, tokens in found)])
            for name in ("all", path.parent.name):
                counts[name] = counts.get(name, 0) + row
    return counts


def flops_per_base(config: PreTrainedConfig, vocab_size: int, ratio: float, mlm_probability: float) -> float:
    """Forward and backward of BASES_A_SEQUENCE bases, a base; without masked tokens those of fine-tuning."""
    config.vocab_size = vocab_size
    return training_flops_per_token(config, BASES_A_SEQUENCE / ratio, mlm_probability) / ratio


def tokens_by_length(tokenizer: Tokenizer) -> list[int]:
    lengths = Counter(len(token) for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS)
    known = [lengths[length] for length in LENGTHS[:-1]]
    return [*known, lengths.total() - sum(known)]


def read_scores(runs: Path | None) -> dict[int, dict]:
    """What tokenizer_runs.py found, by vocabulary, of all that are named by their size: `read_runs` there."""
    found = json.loads((runs / "runs.json").read_text()) if runs else {}
    scores = {int(name): result for name, result in found.items() if name.isdigit()}
    if runs and not scores:
        raise UsageError(f"{runs / 'runs.json'} has no run of a vocabulary that is named by its size, as 4096")
    return scores


def print_tables(tokenizers: dict[int, Tokenizer], counts: dict, flops: np.ndarray, scores: dict[int, dict]) -> None:
    sizes = [f"{size:,}" for size in tokenizers]
    print(f"| | {' | '.join(sizes)} |\n|---|{'--:|' * len(sizes)}")
    ratios = counts["all"][0] / counts["all"][1:]
    rows = {
        "bases a token": [f"{ratio:.2f}" for ratio in ratios],
        f"tokens for {BASES_A_SEQUENCE} bases": [f"{BASES_A_SEQUENCE / ratio:.0f}" for ratio in ratios],
        "FLOPs of pretraining, 4,096: 1": [f"{value:.2f}" for value in flops[0]],
        "FLOPs of fine-tuning, 4,096: 1": [f"{value:.2f}" for value in flops[1]],
    }
    names = {"accuracy": "accuracy of a masked base, %", "bits": "bits a masked base"}
    names |= {"calibrated_bits": "the same, calibrated", "score": "mean score on GUE, %"}
    for key, name in names.items():
        if scores:
            found = [scores.get(size, {}).get(key, []) for size in tokenizers]
            rows[name] = [spread(of, 3) for of in found]
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| tokens of n bases | {' | '.join(sizes)} |\n|--:|{'--:|' * len(sizes)}")
    by_length = zip(*(tokens_by_length(tokenizer) for tokenizer in tokenizers.values()), strict=True)
    for length, cells in zip(LENGTHS, by_length, strict=True):
        print(f"| {length} | {' | '.join(f'{count:,}' for count in cells)} |")
    print(f"\n| bases a token | held-out bases | {' | '.join(sizes)} |\n|---|--:|{'--:|' * len(sizes)}")
    for kingdom, row in sorted(counts.items()):
        print(f"| {kingdom} | {row[0]:,} | {' | '.join(f'{row[0] / tokens:.2f}' for tokens in row[1:])} |")


def draw(counts: dict, flops: np.ndarray, scores: dict[int, dict], path: Path) -> None:
    figure, panels = plt.subplots(1, 2 + bool(scores), figsize=(9 + 4 * bool(scores), 4), layout="constrained")
    for kingdom, row in sorted(counts.items()):
        style = {"color": "black", "linewidth": 2.5} if kingdom == "all" else {"linewidth": 1}
        panels[0].plot(SIZES, row[0] / row[1:], "o-", markersize=3, label=kingdom, **style)
    panels[0].set(ylabel="bases a token, held out", title="Length")
    panels[0].legend(fontsize=7)
    for values, name in zip(flops, ("pretraining", "fine-tuning"), strict=True):
        panels[1].plot(SIZES, values, "o-", label=name)
    panels[1].set(ylabel="FLOPs for the same bases (4,096: 1)", title="Cost, 117M", ylim=(0, None))
    panels[1].legend()
    if scores:
        for size, result in scores.items():
            panels[2].plot([size] * len(result["score"]), result["score"], "o", color="tab:blue")
        means = {size: np.mean(result["score"]) for size, result in sorted(scores.items())}
        panels[2].plot(list(means), list(means.values()), color="tab:blue")
        panels[2].set(ylabel="mean score on GUE (%)", title="Score, a dot a seed")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, SIZES, rotation=45)
        axes.set_xlabel("vocabulary")
        axes.axvline(CHOSEN, color="0.7", linestyle="--", zorder=0)
        axes.annotate("the paper's", (CHOSEN, 0), (3, 3), ("data", "axes fraction"), "offset points", color="0.5")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True, help="files, folders or globs of sequences")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder a vocabulary, and the picture")
    parser.add_argument("--max_bases", type=float, default=2e7, help="to train on (default: 2e7)")
    parser.add_argument("--pieces", type=int, default=50, help="of 2,000 bases held out of each file (default: 50)")
    parser.add_argument("--runs", type=Path, help="--output_dir of tokenizer_runs.py")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    scores = read_scores(args.runs)
    tokenizers = make_vocabularies(args)
    counts = count_held_out(tokenizers, args)
    if not counts["all"].all():
        raise UsageError("no held-out piece in these files: give larger ones")
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    config.update(json.loads((ROOT / "configs" / "117M.json").read_text()))
    ratios = counts["all"][0] / counts["all"][1:]
    flops = np.array(
        [
            [flops_per_base(config, size, ratio, share) for size, ratio in zip(SIZES, ratios, strict=True)]
            for share in (MLM_PROBABILITY, 0.0)
        ]
    )
    flops /= flops[:, [SIZES.index(CHOSEN)]]
    print_tables(tokenizers, counts, flops, scores)
    draw(counts, flops, scores, args.output_dir / "vocabulary_size.png")


if __name__ == "__main__":
    run_script(main)
