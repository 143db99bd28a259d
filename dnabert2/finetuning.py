"""One fine-tuning: batches, steps, the best weights by dev, predictions of whole splits.

Order, strands and dropout are functions of (seed, step): a run that was interrupted ends the same, whether it begins
anew or goes on from a state that it wrote (dnabert2/run_state.py).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.func import functional_call
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import get_scheduler

from dnabert2 import cuda_graphs, metrics
from dnabert2.batches import STRAND, Mixture, StepSampler, dropout_seed, random_stream
from dnabert2.casts import cast_weights
from dnabert2.checkpoints import MetricsFile, unwrap
from dnabert2.encoding import EncodedSplit, EncodedTask
from dnabert2.errors import UsageError
from dnabert2.finite_steps import FiniteSteps
from dnabert2.gue import Recipe
from dnabert2.label_scale import UNSCALED, LabelScale
from dnabert2.labelled import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dnabert2.padding import Collator
from dnabert2.run_state import RunState


MAX_GRAD_NORM = 1.0  # the released recipe's, by transformers' default


def row_losses(logits: torch.Tensor, labels: torch.Tensor, problem_type: str) -> torch.Tensor:
    """The loss of each row, [rows], of logits [rows, outputs]; of several labels a row the mean over them."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if problem_type == SINGLE_LABEL:
        return functional.cross_entropy(logits, labels, reduction="none")
    if problem_type == MULTI_LABEL:
        losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return losses.mean(dim=1)
    return functional.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="none")


def probabilities(logits: np.ndarray, problem_type: str, scale: LabelScale = UNSCALED) -> np.ndarray:
    """
    What `metrics.score` takes, float64: the mean over strands of what logits [strands, rows, outputs] say: [rows,
    outputs], of a regression [rows] in the unit of its labels.
    """
    values = torch.from_numpy(logits).double()
    if problem_type == SINGLE_LABEL:
        values = values.softmax(dim=-1)
    elif problem_type == MULTI_LABEL:
        values = values.sigmoid()
    values = values.mean(dim=0)
    return scale.restore(values[:, 0].numpy()) if problem_type == REGRESSION else values.numpy()


def predict(
    accelerator: Accelerator,
    model: torch.nn.Module,
    collator: Collator,
    strands: Sequence[EncodedSplit],
    batch_size: int,
) -> np.ndarray:
    """
    Logits float32 [strands, rows, outputs], on every process the same. Each computes its share of the rows, and every
    row is there once: rows that fill up a share or a batch are told by the number -1 and dropped.

    Raises UsageError if one is not finite: the weights broke.
    """
    model.eval()
    gathered = []
    for split in strands:
        order = sorted(range(len(split)), key=lambda row: -len(split.input_ids[row]))  # little padding in a batch
        share = order[accelerator.process_index :: accelerator.num_processes]
        size = math.ceil(len(split) / accelerator.num_processes)  # of the largest share
        if collator.multiple > 1:  # for a compiler
            size = math.ceil(size / batch_size) * batch_size
        share += [-1] * (size - len(share))
        logits = []
        with torch.inference_mode():
            for start in range(0, size, batch_size):
                batch = collator([(split, max(row, 0)) for row in share[start : start + batch_size]])
                logits.append(model(**batch).logits.float())
        rows = torch.tensor(share, device=accelerator.device)
        rows, values = accelerator.gather((rows, torch.cat(logits)))
        ordered = values.new_empty(len(split), values.shape[1])
        ordered[rows[rows >= 0]] = values[rows >= 0]
        gathered.append(ordered.cpu().numpy())
    if not np.isfinite(gathered).all():
        raise UsageError("the model predicts what is no finite number: its weights broke; lower --learning_rate")
    return np.stack(gathered)


def strands_of(task: EncodedTask, split: str) -> list[EncodedSplit]:
    return [strands[split] for strands in (task.splits, task.reverse_complements) if strands]


def score(
    accelerator: Accelerator,
    logits: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    scale: LabelScale = UNSCALED,
) -> dict:
    """The loss, the mean over rows and strands, and the scores of a split; on every process the same."""
    target = scale.standardise(torch.from_numpy(labels))
    loss = np.mean([row_losses(torch.from_numpy(strand).double(), target, problem_type).mean() for strand in logits])
    scores = [None]
    if accelerator.is_main_process:  # for all: evaluate keeps files
        scores = [metrics.score(problem_type, probabilities(logits, problem_type, scale), labels)]
    return {"loss": float(loss), **broadcast_object_list(scores)[0]}


def build_optimizer(model: torch.nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]  # matrices; biases and LayerNorm are vectors
    undecayed = [p for p in trained if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=device.type == "cuda",
    )


def sum_gradients(accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter]):
    """
    Adds up the processes' gradients. DDP would want each parameter to have one, which not all models of transformers
    give, and would wrap what is saved, compiled and copied.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    summed = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
    for gradient, part in zip(gradients, summed.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def is_better(scores: dict, best: dict | None, metric: str) -> bool:
    """Whether dev's scores beat the best so far; of equals the first stays, and a score that is undefined loses."""
    if best is None:
        return True
    if metric == "loss":
        return scores["loss"] < best["loss"]
    value, highest = (-math.inf if values[metric] is None else values[metric] for values in (scores, best))
    return value > highest


def finetune(
    accelerator: Accelerator,
    model: torch.nn.Module,
    task: EncodedTask,
    collator: Collator,
    recipe: Recipe,
    *,
    problem_type: str,
    seed: int,
    micro_batch_size: int,
    eval_batch_size: int,
    selection_metric: str,
    metrics_file: MetricsFile,
    logging_steps: int,
    name: str,
    scale: LabelScale = UNSCALED,
    use_cuda_graphs: bool = False,
    state: RunState | None = None,
    on_best: Callable[[dict], None] = lambda best: None,
) -> dict:
    """
    Trains the model, on the accelerator's device, and leaves it with its best weights. Steps that are not finite are
    skipped (`FiniteSteps`).

    Args:
        recipe: with `max_train_steps` set.
        metrics_file: gets a line every `logging_steps` and evaluation: loss, learning_rate, dev_loss, dev_mcc, ...
        name: of the run, for its progress bar.
        scale: of the labels; losses are of standardised ones, all other scores in the unit of the labels.
        use_cuda_graphs: record and replay the steps, of one micro-batch each: see `cuda_graphs.can_record`.
        state: to go on from and to write, if the run may be interrupted; `metrics_file` begins where it does.
        on_best: called with dev's scores and "step" whenever the model, as it is then, is the best so far.

    Returns:
        dev's scores at the best step, and "step", that one.

    Raises:
        UsageError: for several steps in a row that are not finite, and predictions that are not.
    """
    processes, device = accelerator.num_processes, accelerator.device
    plain = unwrap(accelerator, model)
    trained = {key: p for key, p in plain.named_parameters() if p.requires_grad}
    stored = plain.state_dict()
    kept = trained | {key: b for key, b in plain.named_buffers() if key in stored}  # as statistics of BatchNorm
    optimizer = build_optimizer(model, recipe, device)
    scheduler = get_scheduler("linear", optimizer, recipe.num_warmup_steps, recipe.max_train_steps)
    optimizer = accelerator.prepare(optimizer)
    best, best_weights = state.load(model, kept, optimizer, scheduler) if state else (None, {})
    first_step = state.first_step if state else 0
    finite_steps = FiniteSteps(accelerator, optimizer, state.skipped_steps if state else 0)
    train, other_strand = task.splits["train"], task.reverse_complements.get("train")
    sampler = StepSampler(
        Mixture([np.arange(len(train))], temperature=1.0, seed=seed),
        total_batch_size=recipe.total_train_batch_size,
        micro_batch_size=micro_batch_size,
        first_step=first_step,
        last_step=recipe.max_train_steps,
        process_index=accelerator.process_index,
        num_processes=processes,
    )
    micro_batches = iter(sampler)
    accumulated = recipe.total_train_batch_size // (micro_batch_size * processes)
    train_collator = collator
    if use_cuda_graphs:
        strands = [train, other_strand] if other_strand else [train]
        train_collator = cuda_graphs.few_shapes(collator, model, strands, micro_batch_size)

    def strand(epoch: int, row: int) -> EncodedSplit:
        is_other = other_strand and random_stream(seed, STRAND, epoch, row).random() < 0.5
        return other_strand if is_other else train

    def next_batch() -> dict[str, torch.Tensor | int]:
        keys = next(micro_batches)
        labels = scale.standardise(collator.tensor(train.labels[[row for _, row in keys]]))
        return {"labels": labels, **train_collator([(strand(epoch, row), row) for epoch, row in keys])}

    def forward_backward(labels: torch.Tensor, **batch: torch.Tensor | int) -> torch.Tensor:
        """What these rows add to the loss, the mean over the rows of a step."""
        if use_cuda_graphs and accelerator.mixed_precision == "bf16":
            outputs = functional_call(model, cast_weights(model, torch.bfloat16), (), batch)
        else:
            outputs = model(**batch)
        logits = outputs.logits[: len(labels)]  # after those of packed rows come those of padding
        loss = row_losses(logits, labels, problem_type).sum() / recipe.total_train_batch_size
        accelerator.backward(loss)
        return loss.detach()

    recorded = cuda_graphs.RecordedStep(forward_backward, [*trained.values()]) if use_cuda_graphs else None

    def training_step(step: int) -> torch.Tensor:
        """This process's share of the loss; its gradients are in the parameters."""
        dropout = dropout_seed(seed, step, accelerator.process_index)
        if recorded:
            return recorded(next_batch(), dropout)
        torch.manual_seed(dropout)
        return sum(forward_backward(**next_batch()) for _ in range(accumulated))

    model.train()
    progress = tqdm(
        total=recipe.max_train_steps,
        initial=first_step,
        desc=name,
        disable=not accelerator.is_local_main_process,
    )
    for step in range(first_step, recipe.max_train_steps):
        loss = training_step(step)
        sum_gradients(accelerator, [*trained.values()])
        loss = accelerator.reduce(loss, reduction="sum")
        finite_steps.step(loss, accelerator.clip_grad_norm_(trained.values(), MAX_GRAD_NORM))
        optimizer.zero_grad()
        learning_rate = scheduler.get_last_lr()[0]
        scheduler.step()
        progress.update()

        done = step + 1
        is_last = done == recipe.max_train_steps
        values = {}
        if is_last or done % logging_steps == 0:
            skipped, _ = finite_steps.look(done, False, state and state.folder)  # dev judges the last step
            values = {"loss": loss.item()} if loss.isfinite() else {}  # JSON has no others
            values |= {"learning_rate": learning_rate} | ({"skipped_steps": skipped} if skipped else {})
            progress.set_postfix(loss=f"{loss.item():.3f}")
        if is_last or done % recipe.eval_steps == 0:
            logits = predict(accelerator, model, collator, strands_of(task, "dev"), eval_batch_size)
            model.train()
            scores = score(accelerator, logits, task.splits["dev"].labels, problem_type, scale)
            values |= {f"dev_{key}": value for key, value in scores.items()}
            if is_better(scores, best, selection_metric):
                best = {"step": done, **scores}
                best_weights = {key: tensor.detach().clone() for key, tensor in kept.items()}
        if values:
            metrics_file.write(step=done, **values)
        if best and best["step"] == done:
            on_best(best)
        if state and not is_last:
            state.save(done, model, kept, optimizer, scheduler, best, best_weights, finite_steps)
    progress.close()
    with torch.no_grad():
        for key, tensor in kept.items():
            tensor.copy_(best_weights[key])
    return best
