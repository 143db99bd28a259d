"""What DNABERT-2, DNABERT and Nucleotide Transformer cost a base: FLOPs by count, bases a second, memory.

    python benchmarks/compute.py --device cpu --count_only
    python benchmarks/compute.py
    python benchmarks/compute.py --device cpu --layers 1 --bases_per_step 2000 --lengths 500 --seconds 0.1

DNABERT is BERT-base on overlapping 6-mers, with sequences beyond 512 tokens cut into several rows. The Nucleotide
Transformers of 480 M and 2.5 G parameters are ESM-style on 6-mers. All have the sizes of their public configurations,
random weights and tokens, and are transformers' own with its sdpa attention; DNABERT-2 has the fastest that runs here.
FLOPs are those of matrix products and attention in one step as it runs, counted by torch. What a step is says
throughput.py; a step of --bases_per_step that does not fit is halved until it does. Every row is appended to --output
at once; --table_only prints what is there. Results: compute.md.
"""

import argparse
import json
import math
import statistics
import time
from itertools import product
from pathlib import Path

import torch
from length import (
    CANNOT_RUN,
    build_model,
    describe_run,
    free_memory,
    make_step,
    our_config,
    parse_args,
    random_batch,
    read_runs,
    reason,
)
from throughput import peer_batch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import BertConfig, EsmConfig, PreTrainedConfig

from dnabert2.errors import run_script
from dnabert2.loading import fastest_attention


MODES = ["train", "embed"]
BASES_A_TOKEN = 5.03  # of bpe_tokenizer/ on held-out pieces: tokenizer.md
# name: its published FLOPs, DNABERT-2's being 1 (arXiv 2306.15006)
MODELS = {"DNABERT-2": 1.0, "DNABERT": 3.27, "NT-500M": 3.19, "NT-2500M": 19.44}
NT = {"vocab_size": 4105, "max_position_embeddings": 1002, "pad_token_id": 1, "mask_token_id": 2}
NT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12}
NT |= {"position_embedding_type": "absolute", "token_dropout": True, "emb_layer_norm_before": False}
SIZES = "hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
NT_SIZES = {"NT-500M": (1280, 24, 20, 5120), "NT-2500M": (2560, 32, 20, 10240)}


def config_of(name: str, ours: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    if name == "DNABERT-2":
        config = ours
    elif name == "DNABERT":  # the defaults are BERT-base's
        config = BertConfig(vocab_size=4101, max_position_embeddings=512)
    else:
        config = EsmConfig(**NT, **dict(zip(SIZES, NT_SIZES[name], strict=True)), tie_word_embeddings=False)
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def rows_of(name: str, bases: int) -> tuple[int, int]:
    """Rows and tokens of each, special ones included, that a sequence is to a model."""
    if name == "DNABERT-2":
        return 1, math.ceil(bases / BASES_A_TOKEN) + 2
    if name.startswith("NT"):
        return 1, bases // 6 + bases % 6 + 1  # no token at the end
    rows = math.ceil((bases - 5) / 510)
    return rows, math.ceil((bases - 5) / rows) + 2


def make_batch(
    name: str, config: PreTrainedConfig, mode: str, bases: int, sequences: int, device: torch.device
) -> dict:
    rows, length = rows_of(name, bases)
    batch, _ = random_batch(config, mode, length, rows * sequences, 1.0, device)
    return batch if name == "DNABERT-2" else peer_batch(batch)


def count_flops(name: str, config: PreTrainedConfig, mode: str, bases: int) -> float:
    """FLOPs a base of one sequence's step, with tensors that have shapes alone: a 2.5 G model takes seconds."""
    cpu = torch.device("cpu")
    batch = make_batch(name, config, mode, bases, 1, cpu)
    with FakeTensorMode() as fake, FlopCounterMode(display=False) as counter:
        model = build_model(config, mode, "eager", cpu)  # whose attention is matrix products
        with torch.set_grad_enabled(mode != "embed"):
            outputs = model(**{key: fake.from_tensor(tensor) for key, tensor in batch.items()})
        if mode != "embed":
            outputs.loss.backward()
    return counter.get_total_flops() / bases


def measure(
    name: str, config: PreTrainedConfig, mode: str, bases: int, sequences: int, args: argparse.Namespace
) -> dict:
    """Bases a second and peak memory (GiB) of steps of so many sequences."""
    is_ours, device = name == "DNABERT-2", args.device
    attention = fastest_attention(device.type, "bf16") if is_ours else "sdpa"
    model = build_model(config, mode, attention, device)
    step = make_step(model, mode, device)
    batch = make_batch(name, config, mode, bases, sequences, device)
    synchronize = torch.get_device_module(device).synchronize
    times = []
    for warming in (True, True, False):
        while warming or sum(times) < args.seconds:
            start = time.perf_counter()
            step(batch)
            synchronize()
            if warming:
                break
            times.append(time.perf_counter() - start)
    gib = torch.cuda.max_memory_allocated() / 2**30
    return {"bases_per_second": sequences * bases / statistics.median(times), "gib": gib, "attention": attention}


def measure_largest(name: str, config: PreTrainedConfig, mode: str, bases: int, args: argparse.Namespace) -> dict:
    """`measure` of the largest step that fits: --bases_per_step, or that halved again and again."""
    sequences = max(1, args.bases_per_step // bases)
    while True:
        free_memory(args.device)
        torch.manual_seed(0)
        try:
            return {"sequences": sequences} | measure(name, config, mode, bases, sequences, args)
        except CANNOT_RUN as error:
            why = reason(error)
        if why != "out of memory" or sequences == 1:
            return {"sequences": sequences, "error": why}
        sequences //= 2


def print_table(path: Path) -> None:
    """One table a run; ratios are DNABERT-2's cost against the others', so that 3 is three times as dear as it."""
    for run, rows in read_runs(path):
        print(
            f"\n{run}\n\n| bases | | model | GFLOPs a base | × | published × | bases/s | × | GiB | sequences a step |"
        )
        print("|--:|---|---|--:|--:|--:|--:|--:|--:|--:|")
        ours = {(row["bases"], row["mode"]): row for row in rows if row["model"] == "DNABERT-2"}
        for row in rows:
            of = ours[row["bases"], row["mode"]]
            cells = [f"{row['bases']:,}", row["mode"], row["model"], f"{row['flops'] / 1e9:.3f}"]
            cells += [f"{row['flops'] / of['flops']:.2f}", f"{MODELS[row['model']]:.2f}"]
            if "bases_per_second" in row:
                rate = row["bases_per_second"]
                ratio = f"{of['bases_per_second'] / rate:.2f}" if "bases_per_second" in of else "-"
                cells += [f"{rate:,.0f}", ratio, f"{row['gib']:.1f}" if row["gib"] else "-", str(row["sequences"])]
            else:
                cells += [row.get("error", "-"), "-", "-", "-"]
            print("|", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--lengths", nargs="+", type=int, default=[500, 1000, 5000], help="bases a sequence")
    parser.add_argument("--bases_per_step", type=int, default=262_144, help="default: 262,144")
    parser.add_argument("--seconds", type=float, default=2.0, help="of every measurement (default: 2)")
    parser.add_argument("--layers", type=int, help="of every model, for a try (default: as published)")
    parser.add_argument(
        "--count_only", action="store_true", help="count FLOPs and measure nothing; with --device cpu it needs no GPU"
    )
    parser.add_argument("--output", type=Path, default=Path("output/compute.jsonl"), help="default: %(default)s")
    args = parse_args(parser)
    if not args.table_only:
        ours, (run, _) = our_config(args), describe_run(args)
        if args.layers:
            run += f", {args.layers} layer(s) of every model: no published FLOPs are of these"
        models = ["DNABERT-2", *(name for name in MODELS if name in args.models and name != "DNABERT-2")]
        progress = tqdm(list(product(args.lengths, MODES, models)), unit="cell")
        for bases, mode, name in progress:
            progress.set_description(f"{name}, {mode}, {bases:,} bases")
            config = config_of(name, ours, args.layers)
            row = {"run": run, "bases": bases, "mode": mode, "model": name}
            row["flops"] = count_flops(name, config, mode, bases)
            if not args.count_only:
                row |= measure_largest(name, config, mode, bases, args)
            with args.output.open("a") as file:
                print(json.dumps(row), file=file)
    print_table(args.output)


if __name__ == "__main__":
    run_script(main)
