"""Pretrains DNABERT-2 by masked language modelling on sequence files, or goes on from a pretrained checkpoint.

    accelerate launch run_mlm.py --train_file genomes/ --config_name configs/117M.json --output_dir output/117M

The defaults are the paper's recipe (arXiv 2306.15006): 500,000 steps of 4,096 sequences of 128 tokens. Precision and
processes are chosen by `accelerate launch --mixed_precision bf16 --num_processes 2`, or by a file of configs/. Left in
--output_dir: the model, checkpoint-STEP folders (each a loadable model), metrics.jsonl and all_results.json.

The same command again goes on with a run that was interrupted, and does nothing for one that is finished. SIGTERM has
it write a checkpoint at the end of the step (of several processes at the next step that ten divides) and end with
status 143. A step whose loss or gradients are not finite is skipped, its data and its place in the schedule with it,
and counted (skipped_steps); five in a row end the run.
"""

import contextlib
import json
import math
from argparse import Namespace
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, get_mixed_precision_context_manager, set_seed
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import get_scheduler

from dnabert2 import (
    batches,
    checkpoints,
    curves,
    hub,
    loading,
    resuming,
    run_records,
    stopping,
    throughput,
    training_data,
    validation,
)
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.finite_steps import FiniteSteps, refuse_broken_weights
from dnabert2.mlm_arguments import check_args, parse_args, set_schedule


def build_optimizer(model: torch.nn.Module, args: Namespace, device: torch.device) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]  # matrices; biases and LayerNorm are vectors
    undecayed = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=device.type == "cuda",
    )


def prepare(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    """`accelerator.prepare` with the mixed precision of one process also under FSDP2: autocast of float32 weights."""
    if accelerator.is_fsdp2:
        # Accelerate's policy for FSDP2 casts what goes into and comes out of the model and its layers: losses, the
        # number they are divided by and ALiBi slopes would be rounded to bf16, and gradients summed in it.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if accelerator.native_amp:
            model.forward = get_mixed_precision_context_manager(native_amp=True)(model.forward)
    return accelerator.prepare(model, optimizer)


def training_step(accelerator: Accelerator, model: torch.nn.Module, micro_batches: list[dict]) -> torch.Tensor:
    """
    Gradients of one step's loss, and that loss: the mean over all masked tokens of all micro-batches and processes.

    A mean of means would give a token in a micro-batch with few masked ones a larger weight.
    """
    masked = sum((batch["labels"] != batches.IGNORE_INDEX).sum() for batch in micro_batches)
    masked = accelerator.reduce(masked.to(accelerator.device), reduction="sum").clamp(min=1)
    loss = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(micro_batches):
        batch = {key: tensor.to(accelerator.device, non_blocking=True) for key, tensor in batch.items()}
        is_last = i == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            # DDP and FSDP average gradients over processes: the share of each is scaled up by their number
            share = model(**batch, num_items_in_batch=masked / accelerator.num_processes).loss
            accelerator.backward(share)
        loss += share.detach()
    return accelerator.reduce(loss, reduction="mean")


def refuse_missing_trackers(report_to: str):
    """Raises UsageError for a tracker whose package is not there, or which is none: Accelerate only logs that."""
    available = [str(tracker) for tracker in get_available_trackers()]
    if not available or report_to not in ["all", *available]:
        raise UsageError(f"--report_to {report_to}: not installed; there is {', '.join(available) or 'none'}")


def main():
    args = parse_args(__doc__)
    if args.with_tracking:
        refuse_missing_trackers(args.report_to)
    # Other processes wait while the first one tokenises the corpus: longer than the ten minutes NCCL allows.
    # Accumulation is ours: the launcher's number would only divide the loss.
    accelerator = Accelerator(
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
            # The only buffer is constant, and a process without validation rows would miss its broadcast.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
    )
    check_args(args, accelerator.num_processes)
    tokenizer_name = args.tokenizer_name or args.model_name_or_path or loading.ROOT / "bpe_tokenizer"
    if args.num_shards > 1:
        tokenizer = loading.load_tokenizer(tokenizer_name, args.trust_remote_code)
        training_data.prepare_corpus(args, training_data.open_sources(args), tokenizer)
        accelerator.print(f"Shard {args.shard_index} of {args.num_shards} is prepared in {args.cache_dir}")
        return
    args.attn_implementation = args.attn_implementation or loading.fastest_attention(
        accelerator.device.type, accelerator.mixed_precision
    )
    arguments = resuming.arguments_of_run(args) | {"mixed_precision": accelerator.mixed_precision}
    checkpoint, is_finished = resuming.find_run(args.output_dir, args.resume_from_checkpoint, arguments)
    if is_finished:
        accelerator.print(
            f"{args.output_dir} holds this run, finished: nothing to do. Another --output_dir trains anew, and "
            "python -m dnabert2.publish pushes what there is"
        )
        accelerator.end_training()
        return
    state = checkpoints.read_state(checkpoint) if checkpoint else {"step": 0}
    pusher = hub.Pusher(args, accelerator.is_main_process)
    set_seed(args.seed)

    tokenizer = loading.load_tokenizer(checkpoint or tokenizer_name, args.trust_remote_code)
    data = training_data.open_data(args, accelerator, tokenizer)
    if state.setdefault("corpus", data.fingerprint) != data.fingerprint:
        raise UsageError(f"{checkpoint} is of a run on other sequences: the files or dataset have changed since")
    set_schedule(args, data.epoch_rows)

    if checkpoint or args.model_name_or_path:
        model = loading.load_model(checkpoint or args.model_name_or_path, tokenizer, args.trust_remote_code)
    else:
        model = loading.new_model(
            args.config_name or loading.ROOT, tokenizer, args.config_overrides, args.trust_remote_code
        )
    loading.set_attention(model, args.attn_implementation, accelerator.device.type, accelerator.mixed_precision)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    meter = throughput.Meter(accelerator, model.config, args)

    optimizer = build_optimizer(model, args, accelerator.device)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, args.max_train_steps)
    parameters = model.num_parameters()
    lengths = batches.window_lengths(args.min_seq_length, args.max_seq_length)
    # A compiler makes a program of each length, to train and to validate; beyond its limit it computes uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(lengths) + 6)
    model, optimizer = prepare(accelerator, model, optimizer)
    if checkpoint:
        checkpoints.load_checkpoint(accelerator, checkpoint, model, optimizer, scheduler)

    micro_batches = iter(data.loader(state["step"], state.get("stream")))
    # its masks do not depend on --seed: the validation losses of any two runs can be compared
    validation_masking = batches.Masking(tokenizer, args.mlm_probability, args.mlm_span)
    validation_set = batches.MaskedWindows(data.validation, validation_masking, seed=0)
    validation_loader = batches.validation_loader(
        validation_set, args.per_device_eval_batch_size, accelerator.process_index, accelerator.num_processes
    )

    state["recipe"] = run_records.recipe_of_pretraining(
        args, data.describe(), accelerator.mixed_precision, accelerator.num_processes
    )
    accelerator.print(
        f"Corpus      {data.describe()}\n"
        f"Model       {parameters:,} parameters, {args.attn_implementation} attention, "
        f"mixed precision {accelerator.mixed_precision} on {accelerator.num_processes} x {accelerator.device.type}\n"
        f"Batch       {args.total_train_batch_size} sequences = {accelerator.num_processes} process(es) x "
        f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulated"
        f"{f', cut to {min(lengths)} to {max(lengths)} tokens' if len(lengths) > 1 else ''}\n"
        f"Steps       {state['step']:,} to {args.max_train_steps:,}: "
        f"{args.max_train_steps * meter.tokens_a_step:,} tokens in all"
    )
    if args.with_tracking:
        accelerator.init_trackers(
            "pretraining",
            config={name: str(value) for name, value in arguments.items()},
            # what was logged after the checkpoint comes again
            init_kwargs={"tensorboard": {"purge_step": state["step"] + 1}} if checkpoint else {},
        )
    accelerator.wait_for_everyone()  # all have looked before anything is written
    if accelerator.is_main_process:
        resuming.begin(args.output_dir, arguments)
    metrics = checkpoints.MetricsFile(args.output_dir / checkpoints.METRICS_FILE, state["step"], accelerator)
    progress = tqdm(
        total=args.max_train_steps,
        initial=state["step"],
        desc="Pretraining",
        disable=not accelerator.is_local_main_process,
    )
    if args.eval_steps and len(validation_set) and not state["step"]:
        # where the curve begins
        scores = validation.metrics(validation.validate(accelerator, model, validation_loader, data.validation))
        metrics.write(step=0, tokens=0, **scores)
        accelerator.log(scores, step=0)
    table = {}
    finite_steps = FiniteSteps(accelerator, optimizer, state.get("skipped_steps", 0))
    sigterm = stopping.Sigterm()
    meter.start()
    first_step = state["step"]
    for step in range(first_step, args.max_train_steps):
        torch.manual_seed(batches.dropout_seed(args.seed, step, accelerator.process_index))
        length = batches.step_length(args.seed, step, lengths)
        drawn = [next(micro_batches) for _ in range(args.gradient_accumulation_steps)]
        loss = training_step(accelerator, model, [batches.cut_windows(batch, length) for batch in drawn])
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        finite_steps.step(loss, grad_norm)
        optimizer.zero_grad()
        learning_rate = scheduler.get_last_lr()[0]
        scheduler.step()
        meter.steps += 1
        progress.update()

        done = step + 1
        is_last = done == args.max_train_steps
        is_stopping = sigterm.is_stopping(accelerator, done) and not is_last
        is_saved = is_stopping or (args.checkpointing_steps and done % args.checkpointing_steps == 0)
        is_logged = is_last or done % args.logging_steps == 0
        if is_logged or is_saved:
            # after the last step validation judges the weights
            skipped, in_a_row = finite_steps.look(done, is_last and not len(validation_set), args.output_dir)
            state |= {"skipped_steps": skipped} if skipped else {}
            is_saved = is_saved and not in_a_row  # weights that may be broken are no checkpoint
        outlook = meter.outlook(done - first_step, args.max_train_steps - done, loss)
        if outlook and accelerator.is_main_process:
            progress.write(outlook)
        values = {}
        if is_logged:
            values = {"loss": loss.item(), "learning_rate": learning_rate, "grad_norm": grad_norm.item()}
            progress.set_postfix(loss=f"{values['loss']:.3f}")
            values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no others
            values |= meter.read() | ({"skipped_steps": skipped} if skipped else {})
        with meter.paused():
            if len(validation_set) and (is_last or (args.eval_steps and done % args.eval_steps == 0)):
                table = validation.validate(accelerator, model, validation_loader, data.validation)
                scores = validation.metrics(table)
                if accelerator.is_main_process:
                    progress.write(f"Step {done:,}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                values |= scores
                if not math.isfinite(scores.get("validation_loss", 0.0)):
                    refuse_broken_weights(f"the validation loss is not finite at step {done}", args.output_dir)
            if values:
                values = {"tokens": done * meter.tokens_a_step, **values}
                metrics.write(step=done, **values)
                accelerator.log(values, step=done)
            if is_saved:
                state |= {"step": done, "arguments": arguments, "stream": data.state()}
                folder = args.output_dir / f"checkpoint-{done}"
                checkpoints.save_checkpoint(accelerator, folder, model, tokenizer, optimizer, scheduler, state)
                pusher.push_checkpoint(folder)
                if accelerator.is_main_process:
                    checkpoints.prune_checkpoints(folder, args.save_total_limit)
        if is_saved and is_stopping:
            progress.close()
            accelerator.print(f"Stopped by SIGTERM: {folder} is where the same command goes on")
            stopping.end_training(accelerator)
            raise SystemExit(stopping.STATUS)
    progress.close()
    if first_step < args.max_train_steps and in_a_row:
        accelerator.print(
            f"Warning: loss or gradients of the last {in_a_row} step(s) were not finite, and these were skipped: the "
            f"model is that of step {args.max_train_steps - in_a_row:,}; {skipped:,} step(s) were skipped in all"
        )

    checkpoints.save_final_model(accelerator, model, tokenizer, args.output_dir)
    results = metrics.last | {"parameters": parameters, "train_tokens": args.max_train_steps * meter.tokens_a_step}
    results |= data.baseline() | {"recipe": state["recipe"]}
    if len(validation_set) and not table:  # resumed after its last step
        table = validation.validate(accelerator, model, validation_loader, data.validation)
    if accelerator.is_main_process:
        if table:
            results["validation"] = table
            write_whole(args.output_dir / "validation.md", validation.markdown(table))
        write_whole(args.output_dir / checkpoints.RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        curves.draw_curves([args.output_dir], args.output_dir / "curves.png")
    accelerator.wait_for_everyone()  # nobody leaves before all is saved
    accelerator.print(f"Saved to {args.output_dir}")
    stopping.end_training(accelerator)
    pusher.finish(args.output_dir)


if __name__ == "__main__":
    run_script(main)
