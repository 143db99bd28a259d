"""Forward and backward of a training step as a CUDA graph: recorded once for each shape of a batch, then replayed.

A step of 32 short sequences is hundreds of kernels of some microseconds each; Python takes longer to launch them one
by one than the GPU to run them. A graph is launched as one (benchmarks/gue_speed.py measures it). It is part of
dnabert2/finetuning.py; gradients are summed over processes, clipped and applied outside.

What is recorded must be the same for every batch: shapes are few, and nothing inside waits for the GPU. Flash would
have to ask it how much padding there is to take out: its batches are packed, those of sdpa and eager are padded.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn

from dnabert2.encoding import EncodedSplit
from dnabert2.errors import UsageError
from dnabert2.padding import Collator, Packer


WARM_UP = 3  # calls before one is recorded: kernels are compiled, libraries choose theirs and take their memory
LONGEST = 512  # tokens of a row; with more the GPU has enough to do
MOST_SHAPES = 8  # of a task's batches; each is a graph with gradients of its own


def can_record(
    accelerator: Accelerator, model: nn.Module, max_seq_length: int, attn_implementation: str | None
) -> bool:
    """Whether to record this model's steps, with this back end of attention (None: flash or sdpa will be chosen)."""
    return (
        accelerator.device.type == "cuda"
        and accelerator.mixed_precision in ("no", "bf16")  # fp16's scaler is not tried
        and accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
        and model.config.model_type == "dnabert2"  # others may wait for the GPU
        and attn_implementation != "flex_attention"
        and max_seq_length <= LONGEST
    )


def length_multiple(max_seq_length: int) -> int:
    """Batches as long as a multiple of this have at most `MOST_SHAPES` lengths, and little padding."""
    return 16 * math.ceil(max_seq_length / (16 * MOST_SHAPES))


def token_multiple(lengths: np.ndarray, rows: int) -> int:
    """
    The same for the tokens of packed batches, of so many rows each drawn from these lengths: of all but one batch in
    16,000 they are within four standard deviations. Where all are close, a little more padding saves graphs.
    """
    apart = 8 * lengths.std() * math.sqrt(rows)
    return 16 * math.ceil(max(apart / MOST_SHAPES, rows * lengths.mean() / 32) / 16)


def packs(model: nn.Module) -> bool:
    """Whether this model's batches are to be packed. Other back ends take packed rows for a long one."""
    return model.config._attn_implementation == "flash_attention_2"


def few_shapes(collator: Collator, model: nn.Module, splits: Sequence[EncodedSplit], rows: int) -> Collator:
    """Makes batches to record: of so many rows of these splits, which are all that may come."""
    lengths = np.array([len(ids) for split in splits for ids in split.input_ids])
    if not packs(model):
        return replace(collator, multiple=length_multiple(int(lengths.max())))
    multiple, max_seqlen = token_multiple(lengths, rows), max(16, int(lengths.max()))
    return Packer(**asdict(collator) | {"multiple": multiple, "max_seqlen": max_seqlen})


@dataclass(frozen=True)
class Recording:
    """
    A graph and the memory that every replay of it reads and writes.

    Args:
        inputs: what the function is given; copy a batch into its tensors.
        result: what it returned.
        gradients: of the parameters, None of one that has none.
    """

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor | int]
    result: torch.Tensor
    gradients: list[torch.Tensor | None]


@cache
def recording_stream(device: int) -> torch.cuda.Stream:
    """One of all runs: cuBLAS keeps its workspace of every stream for good."""
    return torch.cuda.Stream(device)


def record(
    function: Callable[..., torch.Tensor],
    inputs: dict[str, torch.Tensor | int],
    parameters: Sequence[nn.Parameter],
    first: Recording | None,
) -> Recording:
    """
    Records `function(**inputs)`, which must leave gradients in the parameters and return a tensor without a history.

    Args:
        first: another recording, to share its memory: neither may be replayed while the other's result and gradients
            are still needed.
    """

    def call() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None  # so that the gradient is written, not added
        return function(**inputs)

    # One stream for all calls: where autograd remembers a parameter's from one before, it must not be another, as a
    # recording fails that waits for what is not recorded.
    stream = recording_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    for parameter in parameters:
        parameter.grad = None  # freed now: what is freed while recording stays with the stream
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: what other threads do meanwhile, as NCCL's that watches over the processes, is no error
    pool = first.graph.pool() if first else None
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        result = call()
    return Recording(graph, inputs, result, [parameter.grad for parameter in parameters])


class RecordedStep:
    """
    Calls a function through recordings, one for each shape of its inputs, and each value of those that are no tensors.

    Args:
        function: as of `record`; the same kernels for all inputs of a shape, and nothing changes by it but the
            parameters' gradients. Its autocast must begin and end within it: weights cast before would be replayed as
            they were.
        parameters: that get gradients.
    """

    def __init__(self, function: Callable[..., torch.Tensor], parameters: Sequence[nn.Parameter]):
        self.function, self.parameters = function, parameters
        self.recordings: dict[tuple, Recording] = {}  # by shapes and values of the inputs

    def __call__(self, inputs: dict[str, torch.Tensor | int], seed: int) -> torch.Tensor:
        """
        The function's result, and gradients in the parameters; the next call overwrites both.

        Args:
            seed: of torch's generators. Recorded kernels read it, and the numbers drawn since, when they are replayed:
                dropout is the same function of it as without a graph.

        Raises:
            UsageError: for a GPU without the memory for another recording.
        """
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        key = tuple(value.shape if name in tensors else value for name, value in inputs.items())
        if key not in self.recordings:
            first = next(iter(self.recordings.values()), None)
            own = inputs | {name: tensor.clone() for name, tensor in tensors.items()}
            try:
                self.recordings[key] = record(self.function, own, self.parameters, first)
            except RuntimeError as error:
                # where it failed in the midst of a recording, that one's end can raise an error of its own
                if not any(isinstance(each, torch.OutOfMemoryError) for each in (error, error.__context__)):
                    raise
                raise UsageError(
                    "the GPU has no memory left to record the training step as a CUDA graph: give --no_cuda_graphs, "
                    "and if that needs too much as well, a smaller --per_device_train_batch_size"
                ) from error
        recording = self.recordings[key]
        for name, tensor in tensors.items():
            recording.inputs[name].copy_(tensor)
        torch.manual_seed(seed)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.result
