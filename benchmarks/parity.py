"""The largest error of every attention back end against eager float64: forward and gradients, by layout and precision.

    python benchmarks/parity.py --device cpu
    python benchmarks/parity.py --device cuda

A small MLM model with random weights and head dimension 64, without dropout. The contract, which
tests/test_modeling_backends.py asserts of the same cells: in float32 an error is at most 1e-5, in half precision at
most twice eager's own on the same device. Writes one section a device of parity.md, and leaves the others alone.
"""

import argparse
import copy
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from dnabert2.errors import run_script
from dnabert2.loading import ATTENTION, ROOT


SIZES = {
    "vocab_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "initializer_range": 0.1,  # five times the usual: attention that is far from uniform
    "hidden_dropout_prob": 0.0,
    "low_precision_layernorm": False,  # with it autocast comes to the same as weights in half precision
}
LONG = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 64}  # what a CPU does in seconds in float64


def padded(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


LONGEST = "4,096 tokens"
# Of each layout the attention mask, or the lengths of sequences packed into one row.
LAYOUTS = {
    "full": padded(40, 40, 40),
    "right-padded": padded(40, 33, 12, 1, 0),
    "left-padded": padded(40, 33, 12, 1, 0).flip(1),
    "with holes": padded(40, 33, 12) * (torch.arange(40) % 5 > torch.tensor([[-1], [0], [1]])),
    "packed": [1, 13, 40, 7, 24],
    "1 token": padded(1),
    "300 tokens, padded": padded(300, 60),
    "300 tokens, packed": [1, 300, 130],
    LONGEST: padded(4096),
}
PRECISIONS = {
    # name: (dtype of the weights, autocast)
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
    "autocast to float16": (torch.float32, torch.float16),
}
QUANTITIES = ("forward", "gradients")
PACKAGES = ("torch", "transformers", "flash-attn")
INTRODUCTION = """# Every attention back end against eager float64

Written by `benchmarks/parity.py`, a section a device. A small MLM model (2 layers, 2 heads of dimension 64; at 4,096
tokens one of each) with random weights that every precision holds exactly, without dropout; tokens of both types.

- forward: the largest difference of a last hidden state from eager float64, over the largest value there.
- gradients: the norm of the difference over the norm, of the gradients of all parameters as one vector.
- Packed sequences are compared with each sequence alone, padded rows with eager float64 under the same mask; padding
  must be exactly 0. The padded rows have 40, 33, 12, 1 and 0 tokens, or 300 and 60; the packed sequences 1, 13, 40, 7
  and 24, or 1, 300 and 130. bfloat16 and float16 are the weights' dtype; autocast has float32 weights.
- The contract: in float32 at most 1e-5, in half precision at most twice eager's error in the same row. **Bold**:
  broken. `tests/test_modeling_backends.py` asserts it of the same cells, on a CPU but of seven slow ones of float16 at
  4,096 tokens.
"""


class Cell(NamedTuple):
    device: str
    back_end: str
    layout: str
    precision: str
    quantity: str

    def why_not(self) -> str | None:
        """Why this cell cannot run, and None where it can."""
        if self.back_end == "flash_attention_2":
            if self.device != "cuda" or find_spec("flash_attn") is None:
                return "flash_attention_2 needs a GPU and flash-attn"
            if self.precision == "float32":
                return "flash_attention_2 computes in half precision"
        # under a mask with holes the model takes sdpa in its place
        is_flex = self.back_end == "flex_attention" and self.layout != "with holes"
        if is_flex and (self.device, self.quantity) == ("cpu", "gradients"):
            return "flex_attention has no backward pass on a CPU"
        return None


def cells(device: str) -> Iterator[Cell]:
    """All cells of a device, those that cannot run included."""
    return (Cell(device, *key) for key in product(ATTENTION, LAYOUTS, PRECISIONS, QUANTITIES))


# --- one cell ----------------------------------------------------------------------------------------------------


@cache
def drawn_model(layout: str) -> PreTrainedModel:
    """Weights that all precisions hold exactly: what is measured is arithmetic, not the rounding of weights."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    config.update(SIZES | (LONG if layout == LONGEST else {}))
    model = AutoModelForMaskedLM.from_config(config, trust_remote_code=True, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)  # as trained ones are; fresh ones are 0, and the head's rows at padding too
            parameter.copy_(parameter.bfloat16().half())
    return model.eval()


def make_model(layout: str, back_end: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    model = copy.deepcopy(drawn_model(layout)).to(device, dtype)
    model.set_attn_implementation(back_end)
    return model


def make_batch(layout: str) -> dict[str, torch.Tensor]:
    """Random tokens of both types; all but the padding are labelled."""
    mask = LAYOUTS[layout]
    is_packed = isinstance(mask, list)
    shape = (1, sum(mask)) if is_packed else mask.shape
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, SIZES["vocab_size"], shape, generator=generator)
    batch = {"input_ids": ids, "token_type_ids": torch.randint(2, shape, generator=generator)}
    batch["labels"] = torch.randint(5, SIZES["vocab_size"], shape, generator=generator)
    if is_packed:
        batch["cu_seqlens"] = torch.tensor([0, *mask]).cumsum(0).int()
    elif not mask.all():
        batch |= {"attention_mask": mask, "labels": batch["labels"].where(mask.bool(), -100)}
    return batch


def alone(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Packed sequences as batches of one; any other batch as it is."""
    if "cu_seqlens" not in batch:
        return [batch]
    lengths = batch["cu_seqlens"].diff().tolist()
    parts = {key: batch[key].split(lengths, dim=1) for key in ("input_ids", "token_type_ids", "labels")}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def run(model: PreTrainedModel, batch: dict, quantity: str, tokens: int, autocast: torch.dtype | None) -> torch.Tensor:
    """
    In float64, "forward": the last hidden state (batch, length, hidden_size); "gradients": those of all parameters, as
    one vector, of a loss between the mean over `tokens` and their sum, which float16 holds without loss.
    """
    batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
    with torch.autocast(model.device.type, autocast, autocast is not None):
        if quantity == "forward":
            with torch.no_grad():
                return model(**batch, output_hidden_states=True).hidden_states[-1].double()
        loss = model(**batch, num_items_in_batch=tokens**0.5).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten().double() for gradient in gradients])


@cache
def exact(device: str, layout: str, quantity: str) -> torch.Tensor:
    """By eager float64, every packed sequence alone: that none sees another is part of what is measured."""
    model, batch = make_model(layout, "eager", torch.float64, device), make_batch(layout)
    tokens = (batch["labels"] >= 0).sum().item()
    parts = [run(model, part, quantity, tokens, None) for part in alone(batch)]
    return torch.cat(parts, dim=1) if quantity == "forward" else sum(parts)


@cache
def measure(cell: Cell) -> float:
    """
    The error of a cell. Forward: the largest difference of a last hidden state, over the largest value; infinite if
    padding is not exactly 0. Gradients: the norm of the difference over the norm, of all parameters as one vector.
    """
    dtype, autocast = PRECISIONS[cell.precision]
    batch = make_batch(cell.layout)
    is_token = batch["labels"] >= 0
    model = make_model(cell.layout, cell.back_end, dtype, cell.device)
    # flex is compiled for each dtype, layout and mode; over its limit torch would run it unfused, and not say so
    with torch._dynamo.config.patch(recompile_limit=100, fail_on_recompile_limit_hit=True):
        values = run(model, batch, cell.quantity, is_token.sum().item(), autocast)
    expected = exact(cell.device, cell.layout, cell.quantity)
    if cell.quantity == "gradients":
        return ((values - expected).norm() / expected.norm()).item()
    if values[~is_token].any():
        return float("inf")
    return ((values - expected).abs().max() / expected.abs().max()).item()


def bound(cell: Cell) -> float:
    """
    The largest error that the contract admits. It says nothing of eager in half precision, by which the others are
    measured: that gets twice the worst seen on a CPU, in roundings of the dtype.
    """
    if cell.precision == "float32":
        return 1e-5
    if cell.back_end != "eager":
        return 2 * measure(cell._replace(back_end="eager"))
    rounding = 2.0**-9 if "bfloat16" in cell.precision else 2.0**-12
    return rounding * {"forward": 13, "gradients": 26}[cell.quantity]


# --- the table ---------------------------------------------------------------------------------------------------


def describe_device(device: str) -> str:
    versions = [next((found.version for found in metadata.distributions(name=name)), "none") for name in PACKAGES]
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"CPU with {torch.get_num_threads()} threads"
    return ", ".join([hardware, *(f"{name} {version}" for name, version in zip(PACKAGES, versions, strict=True))])


def table(device: str, errors: dict[Cell, float | str]) -> str:
    """A row a layout and precision, a column a quantity and back end; what is over its bound in bold."""
    columns = list(product(QUANTITIES, ATTENTION))
    lines = ["| | | " + " | ".join(f"{quantity}, {back_end}" for quantity, back_end in columns) + " |"]
    lines.append("|---|---|" + "--:|" * len(columns))
    reasons = sorted({error for error in errors.values() if isinstance(error, str)})
    for layout, precision in product(LAYOUTS, PRECISIONS):
        row = [layout, precision]
        for quantity, back_end in columns:
            cell = Cell(device, back_end, layout, precision, quantity)
            error = errors[cell]
            if isinstance(error, str):
                row.append(f"({reasons.index(error) + 1})")
            else:
                row.append(f"{error:.1e}" if error <= bound(cell) else f"**{error:.1e}**")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"({i + 1}) {reason}  " for i, reason in enumerate(reasons))])


def write_section(path: Path, title: str, text: str):
    """Writes one `##` section of a Markdown file in place of the one of the same title; the others stay."""
    sections = re.split(r"^(?=## )", path.read_text() if path.exists() else INTRODUCTION, flags=re.MULTILINE)
    kept = [section.strip() for section in sections if not section.startswith(f"## {title}\n")]
    path.write_text("\n\n".join([*kept, f"## {title}\n\n{text.strip()}"]) + "\n")


def measured_or_why_not(cell: Cell) -> float | str:
    try:
        return cell.why_not() or measure(cell)
    except (ImportError, RuntimeError, ValueError) as error:  # one broken back end does not cost the others' cells
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"), help="default: parity.md")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes: on a GPU flex's compiler takes most of the time"
    )
    args = parser.parse_args()
    started = datetime.now()
    cells_of_device = list(cells(args.device))
    cells_of_layout = len(PRECISIONS) * len(QUANTITIES)  # one process measures them: they share models and kernels
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        measured = pool.map(measured_or_why_not, cells_of_device, chunksize=cells_of_layout)
        errors = dict(zip(cells_of_device, tqdm(measured, total=len(cells_of_device), unit="cell"), strict=True))
    seconds = (datetime.now() - started).total_seconds()
    title = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    command = f"python benchmarks/parity.py --device {args.device} --jobs {args.jobs}"
    run_facts = f"{started:%Y-%m-%d}, {describe_device(args.device)}: `{command}`, {seconds:.0f} s."
    write_section(args.output, title, f"{run_facts}\n\n{table(args.device, errors)}")
    measured = {cell: error for cell, error in errors.items() if isinstance(error, float)}
    worst = max(measured, key=lambda cell: measured[cell] / bound(cell))
    print(f"{len(measured)} cells; the nearest to its bound: {worst}, {measured[worst]:.1e} of {bound(worst):.1e}")


if __name__ == "__main__":
    run_script(main)
