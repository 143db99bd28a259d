"""The longest sequence that the model embeds and trains on, by attention back end, in powers of two from 1,024 tokens.

    PYTORCH_ALLOC_CONF=expandable_segments:True python benchmarks/length.py
    python benchmarks/length.py --device cpu --config_name configs/tiny.json --max_length 4096

One random sequence, random weights, one device, not compiled. What a step is says throughput.py, which uses the
functions of this file. A sweep over lengths ends when memory does, at --max_length, or before a step that would take
longer than --step_seconds. Every row is appended to --output at once; --table_only prints what is there.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from itertools import groupby, product
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from dnabert2.errors import run_script
from dnabert2.loading import ATTENTION, ROOT, load_tokenizer, new_model
from dnabert2.throughput import matrix_rate


MLM_PROBABILITY = 0.15
MODES = ["embed", "train", "train_checkpointed"]
CANNOT_RUN = (ImportError, RuntimeError, ValueError)  # memory's end and the compiler's errors are RuntimeErrors


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds the arguments that both scripts have, and reads the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config_name", default=str(ROOT / "configs" / "117M.json"), help="sizes of our model")
    parser.add_argument("--hidden_dropout_prob", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--attn_implementation", nargs="+", choices=ATTENTION, default=ATTENTION)
    parser.add_argument("--device", type=torch.device, default="cuda", help="default: cuda")
    parser.add_argument("--table_only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.table_only and not args.output.is_file():
        parser.error(f"--output {args.output}: no such file")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.device.type == "cuda" and not (args.table_only or torch.cuda.is_available()):
        parser.error("no CUDA device here: say --device cpu")
    return args


def describe_run(args: argparse.Namespace) -> tuple[str, float | None]:
    """Date, device, versions and model; and the FLOP/s that bf16 matrix products reach on a GPU."""
    facts, rate = [f"{datetime.now():%Y-%m-%d %H:%M:%S}", f"CPU, {torch.get_num_threads()} threads"], None
    if args.device.type == "cuda":
        rate = matrix_rate(args.device, torch.bfloat16)
        facts[1] = f"{torch.cuda.get_device_name()} (bf16 matrix products {rate / 1e12:.0f} TFLOP/s)"
    for name in ("torch", "transformers", "flash-attn"):
        facts.append(f"{name} {next((found.version for found in metadata.distributions(name=name)), 'none')}")
    return ", ".join([*facts, Path(args.config_name).stem, f"hidden dropout {args.hidden_dropout_prob}"]), rate


def our_config(args: argparse.Namespace) -> PreTrainedConfig:
    with torch.device("meta"):
        tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
        return new_model(args.config_name, tokenizer, f"hidden_dropout_prob={args.hidden_dropout_prob}").config


def build_model(config: PreTrainedConfig, mode: str, attention: str, device: torch.device) -> PreTrainedModel:
    """Random weights: float32 to train, bf16 to embed on a GPU. ImportError, ValueError: no such back end here."""
    if attention == "flash_attention_2" and not is_flash_attn_2_available():  # transformers would look on the Hub
        raise ImportError("no flash-attn, or no GPU")
    dtype = torch.bfloat16 if mode == "embed" and device.type == "cuda" else torch.float32
    auto_class = AutoModel if mode == "embed" else AutoModelForMaskedLM
    with device:
        model = auto_class.from_config(config, trust_remote_code=True, attn_implementation=attention, dtype=dtype)
    return model.train(mode != "embed")


def random_batch(
    config: PreTrainedConfig, mode: str, length: int, rows: int, fill: float, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Our model's inputs, and the lengths of their rows (rows,): `length`, or random with a mean of `fill`·length."""
    spread = min(fill, 1 - fill) * (2 * torch.rand(rows) - 1)
    lengths = ((fill + spread) * length).round().long().clamp(1, length)
    is_token = torch.arange(length) < lengths[:, None]
    batch = {"input_ids": torch.randint(5, config.vocab_size, (rows, length)).where(is_token, config.pad_token_id)}
    if fill < 1:
        batch["attention_mask"] = is_token.long()
    if mode != "embed":
        positions = is_token.flatten().nonzero().flatten()
        labelled = round(MLM_PROBABILITY * fill * rows * length)  # the same number in every batch
        positions = positions[torch.randperm(len(positions))[:labelled]].sort().values
        labels = torch.randint(5, config.vocab_size, positions.shape)
        batch |= {"prediction_positions": positions, "labels": labels}
    return {key: tensor.to(device) for key, tensor in batch.items()}, lengths


def make_step(model: PreTrainedModel, mode: str, device: torch.device) -> Callable[[dict], None]:
    """A function that embeds a batch, or trains on it: forward, backward, AdamW. It does not wait for the GPU."""
    training, on_gpu = mode != "embed", device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), fused=on_gpu)

    def step(batch: dict):
        with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16, training and on_gpu):
            outputs = model(**batch)
        if training:
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def free_memory(device: torch.device):
    """Frees what nothing refers to any more, and starts the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def reason(error: Exception) -> str:
    message = " ".join(str(error).replace("|", "/").split()) or type(error).__name__
    no_memory = "out of memory" in message or "t allocate memory" in message
    return "out of memory" if no_memory else message.split(". ")[0][:100]


def read_runs(path: Path) -> list[tuple[str, list[dict]]]:
    """Every run of a results file, by its description, with its rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(run, list(rows_of_run)) for run, rows_of_run in groupby(rows, key=lambda row: row["run"])]


def sweep(attention: str, mode: str, config: PreTrainedConfig, args: argparse.Namespace) -> Iterator[dict]:
    """A row for every length that runs, and a last one, `ended`, that says where and why there is no more."""
    length, seconds, ended = 1024, 0.0, "--max_length"
    torch._dynamo.reset()  # FlexAttention is compiled in any case
    try:
        model = build_model(config, mode, attention, args.device)
        if mode == "train_checkpointed":
            model.gradient_checkpointing_enable()
        step = make_step(model, mode, args.device)
        while length <= args.max_length:
            if 4 * seconds > args.step_seconds:  # attention is quadratic
                raise RuntimeError(f"a step would take up to {4 * seconds:.0f} s")
            free_memory(args.device)
            batch, _ = random_batch(config, mode, length, 1, 1.0, args.device)
            # the first warms up and may compile; where steps are long, all is compiled and warm
            for _ in range(1 if seconds > 1 and length > 8192 else 2):
                start = time.perf_counter()
                step(batch)
                torch.get_device_module(args.device).synchronize()
                seconds = time.perf_counter() - start
            yield {"length": length, "seconds": seconds, "gib": torch.cuda.max_memory_allocated() / 2**30}
            length *= 2
    except CANNOT_RUN as error:
        ended = reason(error)
    yield {"length": length, "ended": ended}


def print_table(path: Path):
    """Of every sweep the longest that ran; ×: by how much its time and memory exceed those of half that length."""
    for run, rows in read_runs(path):
        print(f"\n{run}\n\n| attention | mode | tokens | seconds | tokens/s | GiB | time | memory | ended by |")
        print("|---|---|--:|--:|--:|--:|--:|--:|---|")
        for names, group in groupby(rows, key=lambda row: (row["attention"], row["mode"])):
            group = list(group)
            *_, half, last = [{}, {}, *(row for row in group if "seconds" in row)]
            cells = ["-"] * 6
            if last:
                cells = [f"{last['length']:,}", f"{last['seconds']:.3f}", f"{last['length'] / last['seconds']:,.0f}"]
                cells += [f"{last['gib']:.1f}" if last["gib"] else "-"]
                cells += [f"×{last[key] / half[key]:.1f}" if half.get(key) else "-" for key in ("seconds", "gib")]
            print("|", " | ".join([*names, *cells, group[-1].get("ended", "unfinished")]), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--max_length", type=int, default=2**22, help="tokens (default: 4,194,304)")
    parser.add_argument("--step_seconds", type=float, default=20, help="of the longest step to try (default: 20)")
    parser.add_argument("--output", type=Path, default=Path("output/length.jsonl"), help="default: %(default)s")
    args = parse_args(parser)
    if not args.table_only:
        config, (run, _) = our_config(args), describe_run(args)
        progress = tqdm(list(product(args.attn_implementation, args.modes)), unit="sweep")
        for attention, mode in progress:
            for row in sweep(attention, mode, config, args):
                row = {"run": run, "attention": attention, "mode": mode} | row
                with args.output.open("a") as file:
                    print(json.dumps(row), file=file)
                progress.set_description(f"{attention}, {mode}, {row['length']:,} tokens")
    print_table(args.output)


if __name__ == "__main__":
    run_script(main)
