"""Masked-token loss and accuracy on held-out windows: in all, by kingdom and by species."""

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from dnabert2.batches import IGNORE_INDEX
from dnabert2.windows import Windows, kingdom_of


COLUMNS = ("loss", "correct", "masked_tokens")  # sums over tokens: cross entropy in nats, right ones, all


@torch.no_grad()
def validate(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, windows: Windows
) -> dict[str, dict[str, float]]:
    """
    `COLUMNS` of every species that has a masked token. Call it on every process.

    Args:
        loader: of this process's share of `windows`, as `batches.validation_loader` gives it.
    """
    model.eval()
    names = sorted(set(windows.species))
    species_of_part = torch.tensor([names.index(name) for name in windows.species])
    totals = torch.zeros(len(names), len(COLUMNS), device=accelerator.device, dtype=torch.float64)
    batches = zip(loader.batch_sampler, loader, strict=True)
    for keys, batch in tqdm(
        batches, total=len(loader), desc="Validating", leave=False, disable=not accelerator.is_local_main_process
    ):
        labels, positions = batch.pop("labels"), batch["prediction_positions"]
        species = species_of_part[windows.part_of([row for _, row in keys])]
        species_of_label = species[positions // batch["input_ids"].shape[1]].to(accelerator.device)
        labels = labels.to(accelerator.device)
        logits = model(**{key: tensor.to(accelerator.device) for key, tensor in batch.items()}).logits
        losses = cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
        columns = [losses, logits.argmax(dim=-1) == labels, labels != IGNORE_INDEX]
        totals.index_add_(0, species_of_label, torch.stack(columns, dim=1).double())
    model.train()
    totals = accelerator.reduce(totals, reduction="sum").tolist()
    table = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in zip(names, totals, strict=True)}
    return {name: row for name, row in table.items() if row["masked_tokens"]}


def by_kingdom(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The sums of `validate` over the species of a kingdom; those without one are left out."""
    kingdoms = defaultdict(lambda: dict.fromkeys(COLUMNS, 0.0))
    for species, row in table.items():
        if kingdom := kingdom_of(species):
            for column in COLUMNS:
                kingdoms[kingdom][column] += row[column]
    return dict(sorted(kingdoms.items()))


def metrics(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """`validation_loss` in nats a masked token and `validation_accuracy`; also …/KINGDOM where there are several."""
    total = {column: sum(row[column] for row in table.values()) for column in COLUMNS}
    if not total["masked_tokens"]:  # a split of a few tokens
        return {}
    kingdoms = by_kingdom(table)
    rows = {"": total} | ({f"/{name}": row for name, row in kingdoms.items()} if len(kingdoms) > 1 else {})
    values = {f"validation_loss{name}": row["loss"] / row["masked_tokens"] for name, row in rows.items()}
    return values | {f"validation_accuracy{name}": row["correct"] / row["masked_tokens"] for name, row in rows.items()}


def markdown(table: dict[str, dict[str, float]]) -> str:
    """A table in Markdown: a row for all, each kingdom and each species."""
    total = {column: sum(row[column] for row in table.values()) for column in COLUMNS}
    rows = [("**all**", total), *((f"**{name}**", row) for name, row in by_kingdom(table).items()), *table.items()]
    lines = ["| | masked tokens | loss, nats a token | accuracy |", "|---|--:|--:|--:|"]
    for name, row in rows:
        name, count = " ".join(name.split()).replace("|", r"\|"), row["masked_tokens"]
        lines.append(f"| {name} | {count:,.0f} | {row['loss'] / count:.4f} | {row['correct'] / count:.4f} |")
    return "\n".join(lines) + "\n"
