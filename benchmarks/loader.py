"""Tokens a second of the training loader alone: can it keep ahead of the GPU?

    python benchmarks/loader.py --train_file genomes/ --cache_dir output/cache
    python benchmarks/loader.py --train_file genomes/ --streaming

Reads, masks and batches as run_mlm.py does, without a model. Results: loader.md.
"""

import argparse
import os
import time
from collections.abc import Iterable

from dnabert2.batches import MaskedWindows, Masking, Mixture, StepSampler, training_loader
from dnabert2.corpus import prepare_corpus
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sources import file_sources
from dnabert2.streaming import StreamingLoader


BATCH_TOKENS = 65536


def cached_batches(
    dataset: MaskedWindows, mixture: Mixture, micro_batch_size: int, num_workers: int
) -> Iterable[dict]:
    sampler = StepSampler(
        mixture,
        total_batch_size=micro_batch_size,
        micro_batch_size=micro_batch_size,
        first_step=0,
        last_step=10**9,
    )
    return training_loader(dataset, sampler, num_workers)


def measure(loader: Iterable[dict], num_workers: int, seconds: float) -> tuple[float, float]:
    """Tokens a second once all workers are at work, and seconds until the first batch."""
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(4 * (num_workers + 1)):  # every worker's first ones
        next(batches)
    tokens, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        tokens += next(batches)["input_ids"].numel()
    return tokens / elapsed, first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True)
    parser.add_argument("--cache_dir", default="~/.cache/dnabert2")
    parser.add_argument("--streaming", action="store_true", help="read and tokenise while loading, without a cache")
    parser.add_argument("--max_seq_length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--sampling_temperature", type=float, default=1.0)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: 10)")
    args = parser.parse_args()

    tokenizer, sources = load_tokenizer(ROOT / "bpe_tokenizer"), file_sources(args.train_file)
    masking, seed = Masking(tokenizer, mlm_probability=0.15), 42
    print(f"{os.cpu_count()} cores\n\n| tokens a sequence | workers | thousand tokens a second | first batch, s |")
    print("|--:|--:|--:|--:|")
    for length in args.max_seq_length:
        size, prepared = BATCH_TOKENS // length, ""
        if not args.streaming:
            start = time.perf_counter()
            corpus = prepare_corpus(sources, tokenizer, max_seq_length=length, cache_dir=args.cache_dir)
            prepared = f"\n{corpus.total('bases'):,} bases opened or prepared in {time.perf_counter() - start:.1f} s\n"
            dataset = MaskedWindows(corpus.train, masking, seed)
            rows = corpus.train.rows_by_species().values()
            mixture = Mixture(list(rows), args.sampling_temperature, seed=42)
        for num_workers in args.num_workers:
            if args.streaming:
                loader = StreamingLoader(
                    sources,
                    tokenizer,
                    max_seq_length=length,
                    masking=masking,
                    micro_batch_size=size,
                    sampling_temperature=args.sampling_temperature,
                    num_workers=num_workers,
                    seed=seed,
                )
            else:
                loader = cached_batches(dataset, mixture, size, num_workers)
            rate, first = measure(loader, num_workers, args.seconds)
            print(f"| {length} | {num_workers} | {rate / 1e3:,.0f} | {first:.1f} |", flush=True)
        print(prepared, end="", flush=True)


if __name__ == "__main__":
    main()
