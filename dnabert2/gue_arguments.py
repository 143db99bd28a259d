"""The arguments of run_gue.py, named as in transformers' run_glue_no_trainer.py where the meaning is the same."""

import argparse
import math
from dataclasses import fields, replace
from pathlib import Path

from dnabert2 import hub, loading, releases
from dnabert2.errors import Parser, UsageError, add_debug
from dnabert2.gue import Recipe
from dnabert2.labelled import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL


SELECTION_METRICS = {  # on dev, beside the loss
    SINGLE_LABEL: ["mcc", "macro_f1", "accuracy", "auroc"],
    MULTI_LABEL: ["auroc", "average_precision", "micro_f1", "macro_f1"],
    REGRESSION: ["spearman", "pearson", "r2"],
}
EVAL_TOKENS, MOST_EVAL_ROWS = 65536, 1024  # of a batch of predictions on a GPU
LORA_TARGETS = "Wqkv,dense,gated_layers,wo"  # every matrix of an encoder layer


def parse_args(description: str) -> argparse.Namespace:
    """Reads the command line; `description` heads --help."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="pretrained model, of any kind: a folder or a Hub name")
    model.add_argument(
        "--config_name", help="in its place a model with random weights: a JSON file of sizes as in configs/, a folder"
    )
    model.add_argument("--config_overrides", help="single values on top, as hidden_size=256,num_hidden_layers=4")
    model.add_argument("--tokenizer_name", help="tokenizer folder or Hub name (default: the model's)")
    model.add_argument("--trust_remote_code", action="store_true", help="run the code of a model on the Hub")
    model.add_argument(
        "--attn_implementation", choices=loading.ATTENTION, help="default: of DNABERT-2 the fastest that can run here"
    )

    model.add_argument(
        "--no_cuda_graphs",
        action="store_true",
        help="launch every kernel of a training step by itself, also where DNABERT-2's can be launched as one graph",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_dir", type=Path, help="GUE's folder, or a task's own one with train.csv, dev.csv and test.csv"
    )
    data.add_argument(
        "--tasks", nargs="+", help="of GUE: names as EMP/H3, folders as prom, groups as TF-H, or all (default: all)"
    )
    data.add_argument("--dataset_name", help="in place of a folder: a dataset of the Hub with the same columns")
    data.add_argument("--dataset_config_name", help="the dataset's configuration, if it has several")
    data.add_argument(
        "--problem_type", choices=PROBLEM_TYPES, help=f"default: {SINGLE_LABEL}, or that of a fine-tuned model"
    )
    data.add_argument(
        "--max_seq_length", type=int, help="tokens a row; more are cut (default: the longest row's, or the model's)"
    )
    data.add_argument("--kmer", type=int, help="read overlapping k-mers of this length, as DNABERT's models do")
    data.add_argument(
        "--reverse_complement",
        action="store_true",
        help="train on either strand of a row, by chance, and predict the mean probability of both; kept with the "
        "model, as --kmer is",
    )
    data.add_argument(
        "--predict_file", type=Path, help="train nothing: predict this table or FASTA file by a fine-tuned model"
    )

    recipe = parser.add_argument_group("recipe", "default: that of each task, in dnabert2/gue.py")
    recipe.add_argument("--seeds", type=int, nargs="+", default=[42], help="a run of each task for each (default: 42)")
    recipe.add_argument("--num_train_epochs", type=float)
    recipe.add_argument("--max_train_steps", type=int, help="in place of epochs")
    recipe.add_argument("--learning_rate", type=float, help="its highest value; it falls linearly to 0")
    recipe.add_argument("--num_warmup_steps", type=int)
    recipe.add_argument("--weight_decay", type=float, help="not on biases and LayerNorm")
    recipe.add_argument("--total_train_batch_size", type=int, help="sequences a step, over all processes")
    recipe.add_argument(
        "--per_device_train_batch_size", type=int, help="sequences a device and forward (default: one forward a step)"
    )
    recipe.add_argument(
        "--per_device_eval_batch_size",
        type=int,
        help=f"default: 128; on a GPU as many as have {EVAL_TOKENS:,} tokens, at most {MOST_EVAL_ROWS:,}",
    )
    recipe.add_argument("--eval_steps", type=int, help="steps from evaluation to evaluation on dev")
    recipe.add_argument(
        "--selection_metric", default="loss", help="on dev, of the checkpoint to test: loss, mcc, ... (default: loss)"
    )

    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--use_lora", action="store_true", help="train low-rank adapters, pooler and classifier alone")
    lora.add_argument("--lora_r", type=int, default=8, help="rank (default: 8)")
    lora.add_argument("--lora_alpha", type=float, default=32, help="adapters count alpha / r times (default: 32)")
    lora.add_argument("--lora_dropout", type=float, default=0.05, help="default: 0.05")
    lora.add_argument(
        "--lora_target_modules", default=LORA_TARGETS, help=f"with commas between them (default: {LORA_TARGETS})"
    )
    lora.add_argument(
        "--merge_adapter", action="store_true", help="save the model with its adapters added in, as RUN/merged"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", type=Path, required=True, help="a new folder, or one whose finished runs are kept"
    )
    output.add_argument("--save_model", action="store_true", help="keep each run's best model, or its adapter")
    output.add_argument("--logging_steps", type=int, default=50, help="steps a line of metrics.jsonl (default: 50)")
    output.add_argument(
        "--checkpointing_steps",
        type=int,
        help="keep a state every so many steps, for a run to go on from that was killed (default: it begins anew, "
        "unless SIGTERM ended it: then it saves its state and exits with status 143)",
    )
    hub.add_arguments(parser)
    add_debug(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace):
    """Refuses what cannot run, and sets what follows from other arguments."""
    positive = (
        "max_seq_length kmer num_train_epochs max_train_steps learning_rate total_train_batch_size eval_steps "
        "per_device_train_batch_size per_device_eval_batch_size lora_r lora_alpha logging_steps "
        "checkpointing_steps"
    )
    for name in positive.split():
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} must be greater than 0, is {value}")
    for name in ("num_warmup_steps", "weight_decay"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"--{name} must not be negative, is {value}")
    if not 0 <= args.lora_dropout < 1:
        raise UsageError(f"--lora_dropout must be from 0 to below 1, is {args.lora_dropout}")
    if seeds := [seed for seed in args.seeds if not 0 <= seed < 2**32]:
        raise UsageError(f"--seeds must be from 0 to 2^32 - 1, one is {seeds[0]}")
    args.seeds = [*dict.fromkeys(args.seeds)]
    if bool(args.model_name_or_path) == bool(args.config_name):
        raise UsageError("give --model_name_or_path, or --config_name for random weights: one of them, and not both")
    if args.config_overrides and not args.config_name:
        raise UsageError("--config_overrides is for random weights: give --config_name")
    if args.predict_file:
        return _check_prediction(args)
    if bool(args.data_dir) == bool(args.dataset_name):
        raise UsageError("give --data_dir or --dataset_name: one of them, and not both")
    if args.dataset_config_name and not args.dataset_name:
        raise UsageError("--dataset_config_name is one of a --dataset_name")
    if args.tasks and args.dataset_name:
        raise UsageError("--tasks are folders of --data_dir: leave it out with --dataset_name")
    if args.max_train_steps and args.num_train_epochs:
        raise UsageError("give --max_train_steps or --num_train_epochs, not both")
    args.problem_type = args.problem_type or SINGLE_LABEL
    known = ["loss", *SELECTION_METRICS[args.problem_type]]
    if args.selection_metric not in known:
        raise UsageError(
            f"--selection_metric {args.selection_metric}: of {args.problem_type} one of {' '.join(known)}"
        )
    if args.use_lora and not args.model_name_or_path:
        raise UsageError("--use_lora adapts a pretrained model: give --model_name_or_path")
    if args.merge_adapter and not args.use_lora:
        raise UsageError("--merge_adapter is of an adapter: give --use_lora")
    if args.push_to_hub:
        args.save_model = True
        if args.use_lora:
            releases.refuse_local_base(args.model_name_or_path)


def refuse_several_models(args: argparse.Namespace, tasks: int):
    """Raises UsageError for a push to one repository of the models of several tasks or seeds."""
    if args.push_to_hub and tasks * len(args.seeds) > 1:
        raise UsageError(
            f"--push_to_hub pushes one model, and these are {tasks * len(args.seeds)}: name one of --tasks and one of "
            "--seeds, or give --save_model in its place and push each: python -m dnabert2.publish OUT/TASK/seed-SEED "
            "REPO"
        )


def _check_prediction(args: argparse.Namespace):
    for name in (
        "data_dir",
        "tasks",
        "dataset_name",
        "config_name",
        "use_lora",
        "merge_adapter",
        "save_model",
        "push_to_hub",
    ):
        if getattr(args, name):
            raise UsageError(f"--predict_file trains nothing: leave out --{name}")


def recipe_of(args: argparse.Namespace, recipe: Recipe, train_rows: int) -> Recipe:
    """
    The recipe of a run: a task's, under what the command line says in its place; `max_train_steps` is always set.

    Raises UsageError for a warm-up longer than the run, if it was asked for; a recipe's is at most half of the steps,
    as a task that has lost its train can be short.
    """
    given = {field.name: getattr(args, field.name) for field in fields(Recipe)}
    given = {name: value for name, value in given.items() if value is not None}
    if "max_train_steps" in given:
        given["num_train_epochs"] = None
    elif "num_train_epochs" in given:
        given["max_train_steps"] = None
    recipe = replace(recipe, **given)
    if recipe.num_train_epochs is not None:
        steps = math.ceil(recipe.num_train_epochs * train_rows / recipe.total_train_batch_size)
        recipe = replace(recipe, max_train_steps=steps)
    if args.eval_steps is None:  # the best of a short run is chosen from some steps, too
        recipe = replace(recipe, eval_steps=min(recipe.eval_steps, max(1, recipe.max_train_steps // 5)))
    if args.num_warmup_steps is None:
        return replace(recipe, num_warmup_steps=min(recipe.num_warmup_steps, recipe.max_train_steps // 2))
    if recipe.num_warmup_steps > recipe.max_train_steps:
        raise UsageError(
            f"--num_warmup_steps {recipe.num_warmup_steps} are more than the {recipe.max_train_steps} steps of the "
            "run: the learning rate would never reach its value"
        )
    return recipe


def micro_batch_size(args: argparse.Namespace, recipe: Recipe, num_processes: int) -> int:
    """Sequences a process and forward. Raises UsageError unless whole forwards make up a step."""
    size = args.per_device_train_batch_size or max(1, recipe.total_train_batch_size // num_processes)
    if recipe.total_train_batch_size % (size * num_processes):
        raise UsageError(
            f"{recipe.total_train_batch_size} sequences a step are not a multiple of {size * num_processes} "
            f"({size} on each of {num_processes} process(es)): give --total_train_batch_size or "
            "--per_device_train_batch_size"
        )
    return size


def eval_batch_size(args: argparse.Namespace, device_type: str, max_seq_length: int) -> int:
    """Sequences a process and forward without training."""
    if args.per_device_eval_batch_size:
        return args.per_device_eval_batch_size
    return min(max(1, EVAL_TOKENS // max_seq_length), MOST_EVAL_ROWS) if device_type == "cuda" else 128
