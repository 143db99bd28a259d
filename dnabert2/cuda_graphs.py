"""Forward and backward of a training step as a CUDA graph: recorded once for each length of a batch, then replayed.

A step of 32 short sequences is hundreds of kernels of some microseconds each; Python takes longer to launch them one
by one than the GPU to run them. A graph is launched as one (benchmarks/gue_speed.py measures it). It is part of
dnabert2/finetuning.py; gradients are summed over processes, clipped and applied outside.

What is recorded must be the same for every batch: lengths are few, attention is sdpa or eager (flash takes padding
out, and has to ask the GPU how much there is), and nothing inside waits for the GPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn


WARM_UP = 3  # calls before one is recorded: kernels are compiled, libraries choose theirs and take their memory
LONGEST = 512  # tokens of a row; with more the GPU has enough to do, and flash takes less of its time and memory
MOST_LENGTHS = 8  # of a task's batches; each is a graph with gradients of its own


def can_record(
    accelerator: Accelerator, model: nn.Module, max_seq_length: int, attn_implementation: str | None
) -> bool:
    """Whether to record this model's steps, with this back end of attention (None: sdpa will be chosen)."""
    return (
        accelerator.device.type == "cuda"
        and accelerator.mixed_precision in ("no", "bf16")  # fp16's scaler is not tried
        and accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
        and model.config.model_type == "dnabert2"  # others may wait for the GPU
        and attn_implementation in (None, "sdpa", "eager")
        and max_seq_length <= LONGEST
    )


def length_multiple(max_seq_length: int) -> int:
    """Batches as long as a multiple of this have at most `MOST_LENGTHS` lengths, and little padding."""
    return 16 * math.ceil(max_seq_length / (16 * MOST_LENGTHS))


@dataclass(frozen=True)
class Recording:
    """
    A graph and the memory that every replay of it reads and writes.

    Args:
        stream: on which it was recorded.
        inputs: what the function is given; copy a batch into them.
        result: what it returned.
        gradients: of the parameters, None of one that has none.
    """

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    inputs: dict[str, torch.Tensor]
    result: torch.Tensor
    gradients: list[torch.Tensor | None]


def record(
    function: Callable[..., torch.Tensor],
    inputs: dict[str, torch.Tensor],
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
    stream = first.stream if first else torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: what other threads do meanwhile, as NCCL's that watches over the processes, is no error
    pool = first.graph.pool() if first else None
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        result = call()
    return Recording(graph, stream, inputs, result, [parameter.grad for parameter in parameters])


class RecordedStep:
    """
    Calls a function through recordings, one for each shape of its inputs.

    Args:
        function: as of `record`; the same kernels for all inputs of a shape, and nothing changes by it but the
            parameters' gradients. Its autocast must begin and end within it: weights cast before would be replayed as
            they were.
        parameters: that get gradients.
    """

    def __init__(self, function: Callable[..., torch.Tensor], parameters: Sequence[nn.Parameter]):
        self.function, self.parameters = function, parameters
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, inputs: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
        """
        The function's result, and gradients in the parameters; the next call overwrites both.

        Args:
            seed: of torch's generators. Recorded kernels read it, and the numbers drawn since, when they are replayed:
                dropout is the same function of it as without a graph.
        """
        shapes = tuple(tensor.shape for tensor in inputs.values())
        if shapes not in self.recordings:
            first = next(iter(self.recordings.values()), None)
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            self.recordings[shapes] = record(self.function, own, self.parameters, first)
        recording = self.recordings[shapes]
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        torch.manual_seed(seed)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.result
