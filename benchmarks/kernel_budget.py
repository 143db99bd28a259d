"""Where the time of one training step goes on a GPU, kernel by kernel.

    accelerate launch --config_file configs/accelerate/one_gpu.yaml benchmarks/kernel_budget.py \
        --config_name configs/117M.json --config_overrides low_precision_layernorm=true

The step is run_mlm.py's own (forward, backward, clipping, AdamW) on random tokens. Device time is the profiler's, a
mean of five steps; the step's own time is measured without it, over twenty. A GPU at its power limit lowers its clock:
how fast matrix products are after two seconds of them is therefore measured too. Results: throughput.md.
"""

import argparse
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnabert2 import batches, loading, throughput  # noqa: E402
from run_mlm import build_optimizer, training_step  # noqa: E402


GROUPS = {  # the first expression that a kernel's name matches is its group
    "flash attention": "flash|fmha",
    "attention over tiles": "_attention_(forward|backward)",
    "GEGLU with dropout": "_geglu_",
    "matrix products": "nvjet|gemm|cutlass|splitK",
    "AdamW, clipping": "adam|multi_tensor|lpnorm",
    "LayerNorm, its dropout and residual": "layer_norm",
    "embedding, gather and scatter": "embedding|index|scatter|sort",
    "bias gradients and other sums": "triton_(red|per)|reduce",
    "copies and sets": "Memcpy|Memset|copy",
    "all else": "",
}
WARM_UP, TIMED, PROFILED = 10, 20, 5


def idle_time(events: list) -> float:
    """Milliseconds a step without any kernel."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in events if event.self_device_time_total)
    idle, busy_until = 0.0, spans[0][0]
    for start, end in spans:
        idle += max(start - busy_until, 0)
        busy_until = max(busy_until, end)
    return idle / 1000 / PROFILED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_name", default=ROOT / "configs" / "117M.json", help="sizes of the model")
    parser.add_argument("--config_overrides", help="single values on top, as hidden_dropout_prob=0")
    parser.add_argument("--attn_implementation", choices=loading.ATTENTION, help="default: the fastest that can run")
    parser.add_argument("--per_device_train_batch_size", type=int, default=512, help="sequences a step (default: 512)")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens a sequence (default: 128)")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    args = parser.parse_args()
    args.weight_decay, args.adam_beta1, args.adam_beta2, args.adam_epsilon = 1e-5, 0.9, 0.98, 1e-6

    accelerator = Accelerator()
    tokenizer = loading.load_tokenizer(ROOT / "bpe_tokenizer")
    model = loading.new_model(args.config_name, tokenizer, args.config_overrides)
    attention = args.attn_implementation or loading.fastest_attention("cuda", accelerator.mixed_precision)
    loading.set_attention(model, attention, "cuda", accelerator.mixed_precision)
    config = model.config
    model, optimizer = accelerator.prepare(model.train(), build_optimizer(model, args, accelerator.device))

    shape = (args.per_device_train_batch_size, args.max_seq_length)
    tokens = np.random.default_rng(0).integers(5, len(tokenizer), shape)
    windows = batches.MaskedWindows(tokens, batches.Masking(tokenizer, 0.15), seed=0)
    batch = windows.__getitems__([(0, row) for row in range(shape[0])])
    batch = {key: tensor.pin_memory() for key, tensor in batch.items()}

    def steps(number: int):
        for _ in range(number):
            training_step(accelerator, model, [batch])
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()

    steps(WARM_UP)
    start = time.perf_counter()
    steps(TIMED)
    step_time = (time.perf_counter() - start) / TIMED
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        steps(PROFILED)

    kernels = defaultdict(list)
    for event in profiler.key_averages():
        group = next(name for name, pattern in GROUPS.items() if re.search(pattern, event.key))
        kernels[group].append((event.self_device_time_total / 1000 / PROFILED, event.count // PROFILED, event.key))
    matrix_rate = throughput.matrix_rate(accelerator.device, torch.bfloat16)
    start = time.perf_counter()
    while time.perf_counter() - start < 2:
        sustained_rate = throughput.matrix_rate(accelerator.device, torch.bfloat16)
    rate = tokens.size / step_time
    mfu = rate * throughput.training_flops_per_token(config, args.max_seq_length, 0.15) / matrix_rate
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {attention}, {accelerator.mixed_precision}, "
        f"compiled: {accelerator.state.dynamo_plugin.backend.value}, overrides: {args.config_overrides}\n"
        f"{shape[0]} x {shape[1]} tokens: {step_time * 1e3:.1f} ms a step, {rate / 1e3:,.0f} thousand tokens/s, "
        f"{mfu:.1%} of {matrix_rate / 1e12:.0f} TFLOP/s ({sustained_rate / 1e12:.0f} sustained), "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB\n\n"
        "| kernels | ms a step |\n|---|--:|"
    )
    totals = {group: sum(milliseconds for milliseconds, _, _ in kernels[group]) for group in GROUPS}
    for group, total in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"| {group} | {total:.1f} |")
    print(f"| none: gaps between kernels | {idle_time(profiler.events()):.1f} |\n")
    for group in GROUPS:
        for milliseconds, count, name in sorted(kernels[group], reverse=True)[:12]:
            print(f"{group[:22]:22s} {milliseconds:7.2f} ms x{count:<4d} {name[:110]}")


if __name__ == "__main__":
    main()
