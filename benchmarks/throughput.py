"""Tokens a second by attention back end, in training and embedding, beside transformers' BERT and ModernBERT.

    python benchmarks/throughput.py --compile no --lengths 128 2048
    python benchmarks/throughput.py --device cpu --lengths 128 --tokens_per_step 1024 --modes embed --fill 1

All in one run on one device, with random weights and tokens. A training step is forward, backward and AdamW on float32
weights with 15 % of the tokens labelled (BERT computes all logits, the others only those); embedding is a forward of
the base model. A GPU trains under bf16 autocast and embeds with bf16 weights; a CPU does both in float32. Padding does
not count as tokens. Ratios are to uncompiled BERT on the same rows in the same run, so name bert among the --models.
Every cell is appended to --output at once, or the reason why it cannot run; --table_only prints what is there.
"""

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path

import torch
from length import (
    ATTENTION,
    CANNOT_RUN,
    MLM_PROBABILITY,
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
from tqdm import tqdm
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig, PreTrainedModel

from dnabert2.errors import run_script
from dnabert2.throughput import training_flops_per_token


MODELS = {
    "bert": ["sdpa"],  # first: the others are compared with it
    "bert_same_flops": ["sdpa"],  # its MLP has as many weights as our GEGLU
    "dnabert2": ATTENTION,
    "modernbert": ["sdpa", "flash_attention_2"],
}
MODES = ["train", "embed"]
HEADER = """
| tokens a row | model | attention | compiled | train tokens/s | × BERT | MFU | GiB | embed tokens/s | × BERT | GiB |
|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|"""


def peer_config(name: str, config: PreTrainedConfig, length: int) -> PreTrainedConfig:
    """BERT of our sizes; ModernBERT-base, or for another width than its 768 one of our width and depth."""
    shared = {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    shared["max_position_embeddings"] = max(length, 512)
    sizes = {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    if name == "modernbert":
        sizes = {} if config.hidden_size == 768 else sizes | {"intermediate_size": config.hidden_size * 3 // 2}
        tokens = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        return ModernBertConfig(**shared, **sizes, **tokens, sparse_prediction=True)
    # our GEGLU has 3·hidden·intermediate weights, BERT's MLP 2·hidden·intermediate
    sizes["intermediate_size"] = config.intermediate_size * (3 if name == "bert_same_flops" else 2) // 2
    dropouts = {key: getattr(config, key) for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    return BertConfig(**shared, **sizes, **dropouts)


def peer_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch with `labels` as transformers' models take them: (rows, length), -100 where there is none."""
    if "labels" not in batch:
        return batch
    ids, positions = batch["input_ids"], batch.pop("prediction_positions")
    labels = torch.full_like(ids, -100).flatten().scatter(0, positions, batch["labels"]).view_as(ids)
    return batch | {"labels": labels}


def compile_in_place(model: PreTrainedModel, whole: bool):
    """
    Compiles every encoder layer: one compilation for all, in seconds. A whole model, as run_mlm.py compiles it, takes
    half a minute and ours then trains 2 to 3 % faster.
    """
    if whole:
        model.compile()
        return
    for layers in model.modules():
        if isinstance(layers, torch.nn.ModuleList):
            for layer in layers:
                layer.compile()


def measure(cell: dict, config: PreTrainedConfig, args: argparse.Namespace, peak_rate: float | None) -> dict:
    """Tokens a second and peak memory; of our training on a GPU also MFU, of which `peak_rate` FLOP/s are 100 %."""
    mode, length, device = cell["mode"], cell["length"], args.device
    if cell["model"] != "dnabert2":
        config = peer_config(cell["model"], config, length)
    model = build_model(config, mode, cell["attention"], device)
    if cell["compiled"]:
        compile_in_place(model, args.whole_model)
    step = make_step(model, mode, device)
    rows = max(args.tokens_per_step // length, 1)
    drawn = [random_batch(config, mode, length, rows, cell["fill"], device) for _ in range(3)]
    batches = [batch if cell["model"] == "dnabert2" else peer_batch(batch) for batch, _ in drawn]
    for batch in batches:  # warms up and compiles; with padding, for three numbers of tokens
        step(batch)
    lengths = torch.cat([lengths for _, lengths in drawn]).double()
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    times = []
    while sum(times) < args.seconds:
        start = time.perf_counter()
        for batch in batches:
            step(batch)
        synchronize()
        times.append(time.perf_counter() - start)
    rate = lengths.sum().item() / statistics.median(times)
    result = {"tokens_per_second": rate, "gib": torch.cuda.max_memory_allocated() / 2**30}
    if peak_rate and mode == "train" and cell["model"] == "dnabert2":
        attended = (lengths.square().sum() / lengths.sum()).item()  # by a token on average
        result["mfu"] = rate * training_flops_per_token(config, attended, MLM_PROBABILITY) / peak_rate
    return result


def list_cells(args: argparse.Namespace) -> list[dict]:
    """All there is to measure, uncompiled first. Uncompiled BERT always is: the ratios are to it."""
    rows = [(length, 1.0) for length in args.lengths]
    if args.fill < 1:
        rows.append((min(args.lengths), args.fill))
    choice = args.compile or ("both" if args.device.type == "cuda" else "no")
    models, cells = [name for name in MODELS if name in args.models], []
    for compiled, (length, fill), model in product([False, True], rows, models):
        if choice in ("both", "yes" if compiled else "no") or (model == "bert" and not compiled):
            for attention, mode in product(MODELS[model], args.modes):
                if attention in args.attn_implementation or model.startswith("bert"):
                    cell = {"length": length, "fill": fill, "model": model, "attention": attention}
                    cells.append(cell | {"compiled": compiled, "mode": mode})
    return cells


def columns(row: dict | None, bert: dict) -> list[str]:
    """Tokens a second, ratio to BERT, MFU, GiB."""
    if row is None or "error" in row:
        return [row["error"] if row else "", "", "", ""]
    rate = row["tokens_per_second"]
    ratio = f"{rate / bert['tokens_per_second']:.2f}" if "tokens_per_second" in bert else "-"
    mfu = f"{100 * row['mfu']:.0f} %" if "mfu" in row else "-"
    return [f"{rate:,.0f}", ratio, mfu, f"{row['gib']:.1f}" if row["gib"] else "-"]


def print_table(path: Path):
    """One table a run, with training and embedding side by side."""
    for run, rows in read_runs(path):
        print(f"\n{run}\n{HEADER}")
        names = ("length", "fill", "model", "attention", "compiled")
        found = {(*(row[name] for name in names), row["mode"]): row for row in rows}
        for key in sorted({key[:-1] for key in found}, key=lambda key: (key[0], -key[1], key[2:])):
            length, fill, model, attention, compiled = key
            padding = f", {100 * fill:.0f} % full" if fill < 1 else ""
            line = [f"{length:,}{padding}", model, attention, "yes" if compiled else "no"]
            for mode in MODES:
                cells = columns(found.get((*key, mode)), found.get((length, fill, "bert", "sdpa", False, mode), {}))
                line += cells if mode == "train" else [*cells[:2], cells[3]]
            print("|", " | ".join(line), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512, 2048, 8192], help="tokens a row")
    parser.add_argument("--fill", type=float, default=0.7, help="of padded rows of the shortest length (1: none)")
    parser.add_argument("--compile", choices=["no", "yes", "both"], help="default: both on a GPU, no on a CPU")
    parser.add_argument("--whole_model", action="store_true", help="compile models as a whole, not layer by layer")
    parser.add_argument("--tokens_per_step", type=int, default=65536, help="padding included (default: 65,536)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every measurement (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("output/throughput.jsonl"), help="default: %(default)s")
    args = parse_args(parser)
    if not 0 < args.fill <= 1:
        parser.error("--fill must be above 0 and at most 1")
    if not args.table_only:
        config, (run, peak_rate) = our_config(args), describe_run(args)
        run += f", {args.tokens_per_step:,} tokens a step"
        progress = tqdm(list_cells(args), unit="cell")
        for cell in progress:
            progress.set_description(", ".join(str(value) for value in cell.values()))
            torch._dynamo.reset()
            free_memory(args.device)
            torch.manual_seed(0)
            try:
                result = measure(cell, config, args, peak_rate)
            except CANNOT_RUN as error:
                result = {"error": reason(error)}
            with args.output.open("a") as file:
                print(json.dumps({"run": run, **cell, **result}), file=file)
    print_table(args.output)


if __name__ == "__main__":
    run_script(main)
