"""Fine-tunes a model on the datasets of GUE, or on labelled sequences of your own, and puts the scores in a table.

    accelerate launch run_gue.py --model_name_or_path . --data_dir GUE --tasks all --seeds 42 43 44 --output_dir out
    accelerate launch run_gue.py --model_name_or_path out/tf/0/seed-42 --predict_file new.fa --output_dir predicted

The recipe of each dataset is the published one (dnabert2/gue.py), unless flags say otherwise. Left in --output_dir:
TASK/seed-SEED/ with all_results.json, predictions.csv, metrics.jsonl and the model (--save_model); gue_results.md,
.json and .png. Given again, the command keeps the runs that are finished; one that was interrupted goes on from its
last state (--checkpointing_steps) or begins anew, and ends the same. SIGTERM has it write its state at the end of the
step (of several processes at the next step that ten divides) and end with status 143; after a run's last step it ends
when the run is whole, and between runs at once.
"""

import gc
import json
import os
import time
from argparse import Namespace
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env, set_seed
from transformers import PreTrainedTokenizerBase

from dnabert2 import classifiers, cuda_graphs, gue_arguments, gue_report
from dnabert2.checkpoints import METRICS_FILE, RESULTS_FILE, MetricsFile
from dnabert2.data_checks import check_data, flaws
from dnabert2.encoding import EncodedTask, encode
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.finetuning import finetune, predict, probabilities, score, strands_of
from dnabert2.gue_sources import Source, find_sources, is_of_gue, model_fingerprint
from dnabert2.hub import Pusher
from dnabert2.label_scale import scale_of_task, write_scale
from dnabert2.labelled import REGRESSION, TaskData
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.padding import Collator, length_multiple
from dnabert2.predictions import PREDICTIONS_FILE, make_folder, predict_file, write_predictions
from dnabert2.run_records import hub_names
from dnabert2.run_state import RunState, arguments_of_state, remove_state
from dnabert2.stopping import Sigterm


# What decides the scores of a run, with its recipe, data and seed.
DECIDING = """model_name_or_path dataset_name dataset_config_name config_name config_overrides tokenizer_name
problem_type max_seq_length kmer reverse_complement selection_metric use_lora num_train_epochs max_train_steps
learning_rate num_warmup_steps weight_decay total_train_batch_size eval_steps""".split()
DECIDING_LORA = "lora_r lora_alpha lora_dropout lora_target_modules".split()


def arguments_of_run(args: Namespace, source: Source, seed: int, mixed_precision: str, model: str | None) -> dict:
    """What two runs must have in common to be the same run, as JSON holds it."""
    names = DECIDING + (DECIDING_LORA if args.use_lora else [])
    values = {name: getattr(args, name) for name in names} | {"seed": seed, "mixed_precision": mixed_precision}
    return values | {"data_files": source.fingerprint(), "model_files": model}


def run_folder(args: Namespace, source: Source, seed: int) -> Path:
    return args.output_dir / source.name / f"seed-{seed}"


def is_finished(args: Namespace, folder: Path, arguments: dict) -> bool:
    """
    Whether a run is done. Raises UsageError if it is done, or was interrupted, with other arguments, or if it is done
    without what is to be kept of it.
    """
    is_done = (folder / RESULTS_FILE).is_file()
    results = gue_report.read_json(folder / RESULTS_FILE) if is_done else {}
    saved = results.get("arguments", {}) if is_done else arguments_of_state(folder)
    if saved is None:
        return False
    if changed := gue_report.differing(saved, arguments):
        differences = "; ".join(f"{key} was {saved.get(key)}, is {arguments.get(key)}" for key in changed)
        raise UsageError(f"{folder} is of another run ({differences}): name another --output_dir, or remove it")
    for name in ("save_model", "merge_adapter"):
        if is_done and getattr(args, name) and not results[name]:
            raise UsageError(f"{folder} is finished, but was run without --{name}: remove it to run it again")
    return is_done


def runs_to_do(args: Namespace, accelerator: Accelerator, sources: list[Source]) -> dict[str, dict[int, dict]]:
    """The arguments of the runs that are not finished, by task and seed."""
    precision = accelerator.mixed_precision
    model = model_fingerprint(args.model_name_or_path) if args.model_name_or_path else None
    runs = {}
    for source in sources:
        of_seed = {seed: arguments_of_run(args, source, seed, precision, model) for seed in args.seeds}
        runs[source.name] = {}
        for seed, arguments in of_seed.items():
            if not is_finished(args, folder := run_folder(args, source, seed), arguments):
                runs[source.name][seed] = arguments
            elif accelerator.is_main_process:
                remove_state(folder)  # of a run that was killed when it had just finished
    accelerator.wait_for_everyone()  # all have looked before anything is written
    return runs


def check_recipes(args: Namespace, accelerator: Accelerator, sources: list[Source]):
    """Raises UsageError before the first run for what any of them would be refused for."""
    for source in sources:
        # rows are counted only where they decide: a warm-up of the command line may be longer than a run
        rows = 1 if args.num_warmup_steps is None else len(source.load().splits["train"])
        gue_arguments.micro_batch_size(
            args, gue_arguments.recipe_of(args, source.recipe, rows), accelerator.num_processes
        )


def default_precision() -> str | None:
    """bf16 where the launcher chose nothing and the GPU has it; None leaves the choice to the launcher."""
    is_chosen = "ACCELERATE_MIXED_PRECISION" in os.environ or parse_flag_from_env("ACCELERATE_USE_CPU")
    return "bf16" if not is_chosen and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else None


def run(
    args: Namespace,
    accelerator: Accelerator,
    source: Source,
    data: TaskData,
    task: EncodedTask,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    arguments: dict,
    pusher: Pusher,
    sigterm: Sigterm,
    is_quiet: bool,
):
    """One dataset, one seed: fine-tunes, predicts test once, and writes the run's folder, its results last."""
    folder = run_folder(args, source, seed)
    recipe = gue_arguments.recipe_of(args, source.recipe, len(data.splits["train"]))
    if accelerator.is_main_process:
        make_folder(folder)
    accelerator.wait_for_everyone()
    set_seed(seed)
    labels = classifiers.label_config(data)
    model = classifiers.new_classifier(args, tokenizer, labels, is_quiet or not accelerator.is_main_process)
    scale = scale_of_task(data)
    classifiers.write_reading(model.config, args)
    if data.problem_type == REGRESSION:
        write_scale(model.config, scale)
    if args.use_lora:
        model = classifiers.add_adapter(model, args)
    micro_batch = gue_arguments.micro_batch_size(args, recipe, accelerator.num_processes)
    use_cuda_graphs = (
        not args.no_cuda_graphs
        and cuda_graphs.can_record(accelerator, model, task.max_seq_length, args.attn_implementation)
        and micro_batch * accelerator.num_processes == recipe.total_train_batch_size
    )
    attention = classifiers.use_attention(args, model, accelerator)
    counts = classifiers.count_parameters(model)
    is_cuda = accelerator.device.type == "cuda"
    collator = Collator(
        pad_token_id=tokenizer.pad_token_id,
        has_token_types=classifiers.takes_token_types(model),
        multiple=length_multiple(accelerator, task.max_seq_length),
        device=accelerator.device,
    )
    # precision, device and compiler are Accelerate's; DDP is not used, see `finetuning.sum_gradients`
    model = accelerator.prepare_model(model, evaluation_mode=True)
    eval_batch = gue_arguments.eval_batch_size(args, accelerator.device.type, task.max_seq_length)
    state = RunState(accelerator, folder, arguments, args.checkpointing_steps, sigterm)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    about = {
        "task": source.name,
        "seed": seed,
        "problem_type": data.problem_type,
        "rows": {name: len(split) for name, split in data.splits.items()},
        "train_is_from_dev": data.train_is_from_dev,
        "truncated_rows": {name: split.truncated for name, split in task.splits.items()},
        "max_seq_length": task.max_seq_length,
        "arguments": arguments,
        "recipe": asdict(recipe),
        **hub_names(args),
        **counts,
        "save_model": args.save_model,
        "merge_adapter": args.merge_adapter,
        "attn_implementation": attention,
        "cuda_graphs": use_cuda_graphs,
        "num_processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name() if is_cuda else accelerator.device.type,
    }

    def push_best(best: dict):
        if pusher.has_checkpoints:
            with pusher.snapshot(best["step"]) as snapshot:
                classifiers.save_classifier(accelerator, model, tokenizer, snapshot)
                write_whole(snapshot / METRICS_FILE, (folder / METRICS_FILE).read_bytes())
                write_whole(snapshot / RESULTS_FILE, json.dumps(about | {"dev": best}))

    best = finetune(
        accelerator,
        model,
        task,
        collator,
        recipe,
        problem_type=data.problem_type,
        seed=seed,
        micro_batch_size=micro_batch,
        eval_batch_size=eval_batch,
        selection_metric=args.selection_metric,
        scale=scale,
        metrics_file=MetricsFile(folder / METRICS_FILE, state.first_step, accelerator),
        logging_steps=args.logging_steps,
        name=f"{source.name} seed {seed}",
        use_cuda_graphs=use_cuda_graphs,
        state=state,
        on_best=push_best,
    )
    seconds = time.perf_counter() - start
    logits = predict(accelerator, model, collator, strands_of(task, "test"), eval_batch)
    test = score(accelerator, logits, data.splits["test"].labels, data.problem_type, scale)
    if accelerator.is_main_process:
        values = probabilities(logits, data.problem_type, scale)
        write_predictions(folder / PREDICTIONS_FILE, data.splits["test"], values, data.problem_type, data.label_names)
        if args.save_model:
            classifiers.save_classifier(accelerator, model, tokenizer, folder)
        if args.merge_adapter:
            classifiers.save_merged(accelerator, model, tokenizer, folder / "merged")
        results = about | {
            "test": test,
            "dev": best,
            "resumed_at_step": state.first_step or None,
            "train_seconds": round(seconds, 2),  # with the evaluations on dev; of a resumed run from there
            "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_cuda else None,
        }
        write_whole(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        remove_state(folder)
    accelerator.print(f"{source.name} seed {seed}: test " + gue_report.scores_line(test))
    accelerator.free_memory()


def main():
    args = gue_arguments.parse_args(__doc__)
    gue_arguments.check_args(args)
    accelerator = Accelerator(
        mixed_precision=default_precision(),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # others wait while the first process asks the Hub: longer, if that is slow, than the ten minutes of NCCL
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UsageError(f"{accelerator.distributed_type.value} is not for fine-tuning: launch with --num_processes")
    make_folder(args.output_dir)
    if args.predict_file:
        accelerator.print(f"Predicted to {predict_file(args, accelerator)}")
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return
    sources, missing = find_sources(args)
    if missing:
        accelerator.print(f"Not in {args.data_dir}, left out: {', '.join(missing)}")
    if is_of_gue(sources[0]):
        accelerator.print(
            f"{args.data_dir} is read as a task of your own; for the recipe of GUE's, and its published scores, give "
            "--data_dir the folder above and --tasks"
        )
    gue_arguments.refuse_several_models(args, len(sources))
    runs = runs_to_do(args, accelerator, sources)
    pusher = Pusher(args, accelerator.is_main_process)
    to_do = sum(map(len, runs.values()))
    finished = len(sources) * len(args.seeds) - to_do
    accelerator.print(f"{len(sources)} task(s), {len(args.seeds)} seed(s): {finished} finished, {to_do} to do")
    check_recipes(args, accelerator, [source for source in sources if runs[source.name]])
    sigterm = Sigterm(is_noted=False)
    is_first, tokenizer, positions = True, None, None
    for source in sources:
        if not runs[source.name]:
            continue
        if tokenizer is None:
            name = args.tokenizer_name or args.model_name_or_path or ROOT / "bpe_tokenizer"
            tokenizer = load_tokenizer(name, args.trust_remote_code)
            positions = classifiers.max_positions(args, tokenizer)
        data = source.load()
        if accelerator.is_main_process:
            make_folder(args.output_dir / source.name)
            checks = check_data(data, source.task)
            if found := flaws(checks):
                accelerator.print(f"Warning: {found}")
            checks_file = args.output_dir / source.name / gue_report.CHECKS_FILE
            write_whole(checks_file, json.dumps(checks, indent=2) + "\n")
        task = encode(data, tokenizer, args.max_seq_length, positions, args.kmer, args.reverse_complement)
        for seed, arguments in runs[source.name].items():
            with sigterm.noted():
                run(args, accelerator, source, data, task, tokenizer, seed, arguments, pusher, sigterm, not is_first)
            gc.collect()  # the model, which Accelerate has made a cycle, would stay beside the next one
            is_first = False
    if accelerator.is_main_process:
        gue_report.write_report(args.output_dir)
    accelerator.wait_for_everyone()  # nobody leaves before all is saved
    accelerator.print(f"The table is {args.output_dir / gue_report.MARKDOWN_FILE}")
    accelerator.end_training()
    pusher.finish(run_folder(args, sources[0], args.seeds[0]))


if __name__ == "__main__":
    run_script(main)
