"""Tokens a second of the training loader alone: can it keep ahead of the GPU?

    python benchmarks/loader.py --train_file genomes/ --cache_dir output/cache

Reads, masks and batches as run_mlm.py does, without a model. Results: loader.md.
"""

import argparse
import os
import time

from dnabert2.batches import MaskedWindows, Mixture, StepSampler, training_loader
from dnabert2.corpus import prepare_corpus
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sources import file_sources


def tokens_per_second(
    dataset: MaskedWindows, mixture: Mixture, micro_batch_size: int, num_workers: int, seconds: float
) -> float:
    sampler = StepSampler(
        mixture,
        total_batch_size=micro_batch_size,
        micro_batch_size=micro_batch_size,
        first_step=0,
        last_step=10**9,
    )
    batches = iter(training_loader(dataset, sampler, num_workers))
    for _ in range(4 * (num_workers + 1)):  # starts the workers and fills their queues
        next(batches)
    tokens, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        tokens += next(batches)["input_ids"].numel()
    return tokens / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True)
    parser.add_argument("--cache_dir", default="~/.cache/dnabert2")
    parser.add_argument("--max_seq_length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--sampling_temperature", type=float, default=1.0)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: 10)")
    args = parser.parse_args()

    tokenizer, sources = load_tokenizer(ROOT / "bpe_tokenizer"), file_sources(args.train_file)
    print(f"{os.cpu_count()} cores\n\n| tokens a sequence | workers | thousand tokens a second |\n|--:|--:|--:|")
    for length in args.max_seq_length:
        start = time.perf_counter()
        corpus = prepare_corpus(sources, tokenizer, max_seq_length=length, cache_dir=args.cache_dir)
        prepared = time.perf_counter() - start
        dataset = MaskedWindows(corpus.train, tokenizer, mlm_probability=0.15, seed=42)
        mixture = Mixture(list(corpus.train.rows_by_species().values()), args.sampling_temperature, seed=42)
        for num_workers in args.num_workers:
            rate = tokens_per_second(dataset, mixture, 65536 // length, num_workers, args.seconds)
            print(f"| {length} | {num_workers} | {rate / 1e3:,.0f} |", flush=True)
        print(f"\n{corpus.total('bases'):,} bases opened or prepared in {prepared:.1f} s\n", flush=True)


if __name__ == "__main__":
    main()
