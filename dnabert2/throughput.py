"""How fast a run is, and how much of the machine it uses."""

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from statistics import mean

import psutil
import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from dnabert2.batches import window_lengths


def training_flops_per_token(config: PreTrainedConfig, length: float, mlm_probability: float) -> float:
    """
    Floating-point operations of forward and backward for one token of a sequence of `length` tokens.

    Matrix products alone: 6 a weight they use, and 12·layers·hidden·length for QKᵀ and PV. The MLM head runs on the
    masked tokens only.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    layer = 3 * hidden**2 + hidden**2 + 2 * hidden * intermediate + intermediate * hidden
    head = hidden**2 + config.vocab_size * hidden
    matrix = 6 * (config.num_hidden_layers * layer + mlm_probability * head)
    return matrix + 12 * config.num_hidden_layers * hidden * length


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that an 8192³ matrix product reaches on this GPU, as a measured ceiling: it takes some 20 ms."""
    size, repeats = 8192, 10
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - start)


class Meter:
    """Tokens a second of a training run since the last reading, memory (a GPU's highest so far), and a GPU's MFU."""

    def __init__(self, accelerator: Accelerator, config: PreTrainedConfig, args: Namespace):
        self.tenth_step = 0.0  # when it was done
        self.tokens_a_step = args.total_train_batch_size * args.max_seq_length
        self.num_processes, self.on_gpu = accelerator.num_processes, accelerator.device.type == "cuda"
        if self.on_gpu:
            length = mean(window_lengths(args.min_seq_length, args.max_seq_length))
            self.flops_per_token = training_flops_per_token(config, length, args.mlm_probability)
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
            self.matrix_rate = matrix_rate(accelerator.device, dtype)
            accelerator.print(f"Matrices    {self.matrix_rate / 1e12:.0f} TFLOP/s in {dtype}: the 100 % of MFU")

    def start(self):
        self.steps, self.started = 0, time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside does not count as training."""
        entered = time.perf_counter()
        yield
        self.started += time.perf_counter() - entered
        self.tenth_step += time.perf_counter() - entered

    def read(self) -> dict[str, float]:
        """Call it when the GPU has finished the last step, as after `loss.item()`."""
        rate = self.steps * self.tokens_a_step / (time.perf_counter() - self.started)
        self.start()
        if not self.on_gpu:
            return {"tokens_per_second": rate, "memory_gib": self.memory_gib()}
        return {
            "tokens_per_second": rate,
            "mfu": rate / self.num_processes * self.flops_per_token / self.matrix_rate,
            "memory_gib": self.memory_gib(),
        }

    def memory_gib(self) -> float:
        return (torch.cuda.max_memory_allocated() if self.on_gpu else psutil.Process().memory_info().rss) / 2**30

    def outlook(self, steps: int, remaining_steps: int, loss: torch.Tensor) -> str | None:
        """
        After a run's first 20 steps when it will be done at the rate of the last ten of them, and the memory it takes.
        None at other steps: the first ten are left out because they compile.
        """
        if steps not in (10, 20):
            return None
        loss.item()  # waits for the GPU
        if steps == 10:
            self.tenth_step = time.perf_counter()
            return None
        rate = 10 * self.tokens_a_step / (time.perf_counter() - self.tenth_step)
        remaining = timedelta(seconds=round(remaining_steps * self.tokens_a_step / rate))
        return (
            f"Outlook     {rate:,.0f} tokens/s, {self.memory_gib():.1f} GiB a process: {remaining} to go without "
            f"validation, till {datetime.now() + remaining:%Y-%m-%d %H:%M}"
        )
