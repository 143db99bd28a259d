"""The arguments of run_mlm.py, named as in transformers' run_mlm_no_trainer.py where the meaning is the same."""

import argparse
import math
from pathlib import Path

from dnabert2 import batches, hub, loading
from dnabert2.errors import Parser, UsageError, add_debug


# transformers' schedules that need nothing but the numbers of steps
SCHEDULES = "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt".split()

WARMUP_SHARE = 0.06  # the paper's 30,000 of 500,000 steps


def parse_args(description: str) -> argparse.Namespace:
    """Reads the command line; `description` heads --help."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="pretrained model to go on from: a folder or a Hub name")
    model.add_argument(
        "--config_name",
        help="sizes of a new model: a JSON file as in configs/, a folder or a Hub name (default: the mini model)",
    )
    model.add_argument(
        "--config_overrides", help="single values on top, as hidden_size=256,num_hidden_layers=4 (new models only)"
    )
    model.add_argument(
        "--tokenizer_name", help="tokenizer folder or Hub name (default: the model's, or bpe_tokenizer/ for a new one)"
    )
    model.add_argument("--trust_remote_code", action="store_true", help="run the code of a model on the Hub")
    model.add_argument(
        "--attn_implementation",
        choices=loading.ATTENTION,
        help="attention back end (default: the fastest that can run here, flash_attention_2 or sdpa)",
    )
    model.add_argument("--gradient_checkpointing", action="store_true", help="less memory for more computing")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--train_file",
        nargs="+",
        help="FASTA, FASTQ, GenBank, text, CSV, TSV or Parquet; files, folders or globs; also .gz .xz .zst .bz2, "
        "and URLs with --streaming",
    )
    data.add_argument("--dataset_name", help="instead of files: the train split of a dataset, on the Hub or a folder")
    data.add_argument("--dataset_config_name", help="the dataset's configuration, if it has several")
    data.add_argument("--sequence_column", default="sequence", help="of tables and datasets (default: sequence)")
    data.add_argument(
        "--species_column",
        help='of tables and datasets; "KINGDOM/SPECIES" is validated by kingdom too (default: a file is a species, '
        "its folder the kingdom); with --streaming of the --validation_file only",
    )
    data.add_argument(
        "--sampling_temperature",
        type=float,
        default=1.0,
        help="species (with --streaming: files or shards) are sampled by their size to the power of 1/T: 1 as they "
        "are, higher more evenly (default: 1)",
    )
    data.add_argument(
        "--reverse_complement",
        action="store_true",
        help="train on both strands: on every sequence's other one too; with --streaming half of the regions, by "
        "chance, on the other one",
    )
    data.add_argument(
        "--streaming",
        action="store_true",
        help="read and tokenise while training, for corpora larger than the disk (default: once, into --cache_dir)",
    )
    data.add_argument(
        "--validation_file",
        nargs="+",
        help="files on this machine, as --train_file, to validate on instead of regions of those",
    )
    data.add_argument(
        "--validation_split_percentage",
        type=float,
        help="percentage of every training file's regions held out (default: 1; none with --validation_file or "
        "--streaming)",
    )
    data.add_argument("--max_seq_length", type=int, default=128, help="tokens a sequence (default: 128, ~600 bases)")
    data.add_argument(
        "--min_seq_length",
        type=int,
        help="train on windows of several lengths: every step has --max_seq_length, a half of it, a quarter, … or "
        "this, by chance, and as many tokens (default: --max_seq_length alone)",
    )
    data.add_argument("--mlm_probability", type=float, default=0.15, help="share of tokens to predict (default: 0.15)")
    data.add_argument(
        "--mlm_span",
        type=int,
        default=1,
        help="choose so many tokens in a row, for the same share: k for overlapping k-mers, as DNABERT (default: 1)",
    )
    data.add_argument(
        "--boundary_dropout",
        type=float,
        default=0.0,
        help="share of training windows whose [CLS] and [SEP] are hidden, so that the model learns to do without, as "
        "in the middle of longer sequences (default: 0)",
    )
    data.add_argument(
        "--dataloader_num_workers", type=int, default=2, help="processes that mask and load; 0: none (default: 2)"
    )
    data.add_argument(
        "--cache_dir", default="~/.cache/dnabert2", help="where token ids are kept (default: ~/.cache/dnabert2)"
    )
    data.add_argument(
        "--num_shards",
        type=int,
        default=1,
        help="only tokenise, and of so many shares of the files the one of --shard_index: machines that share a "
        "--cache_dir, or copy theirs together, prepare a corpus side by side; without it the run finds it prepared",
    )
    data.add_argument("--shard_index", type=int, default=0, help="from 0 to --num_shards - 1 (default: 0)")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--total_train_batch_size", type=int, default=4096, help="sequences a step (default: 4096)")
    recipe.add_argument(
        "--per_device_train_batch_size", type=int, default=32, help="sequences a device and forward (default: 32)"
    )
    recipe.add_argument(
        "--per_device_eval_batch_size", type=int, default=128, help="the same for validation (default: 128)"
    )
    recipe.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        help="forwards a step; derived from the batch sizes, and given it decides --total_train_batch_size",
    )
    recipe.add_argument("--max_train_steps", type=int, help="optimiser steps (default: 500,000)")
    recipe.add_argument("--num_train_epochs", type=float, help="passes over the corpus, instead of --max_train_steps")
    recipe.add_argument("--learning_rate", type=float, default=5e-4, help="its highest value (default: 5e-4)")
    recipe.add_argument(
        "--lr_scheduler_type", choices=SCHEDULES, default="linear", help="after the warm-up (default: linear, to 0)"
    )
    recipe.add_argument(
        "--num_warmup_steps", type=int, help="steps from 0 up (default: 6 %% of all: 30,000 of the paper's 500,000)"
    )
    recipe.add_argument("--weight_decay", type=float, default=1e-5, help="not on biases and LayerNorm (default: 1e-5)")
    recipe.add_argument("--adam_beta1", type=float, default=0.9, help="default: 0.9")
    recipe.add_argument("--adam_beta2", type=float, default=0.98, help="default: 0.98")
    recipe.add_argument("--adam_epsilon", type=float, default=1e-6, help="default: 1e-6")
    recipe.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to it (default: 1)")
    recipe.add_argument("--seed", type=int, default=42, help="decides weights, order, masks and dropout (default: 42)")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="a new folder, or a run to resume")
    output.add_argument("--logging_steps", type=int, default=10, help="steps a line of metrics.jsonl (default: 10)")
    output.add_argument(
        "--eval_steps", type=int, help="steps from validation to validation (default: at the end only)"
    )
    output.add_argument("--checkpointing_steps", type=int, help="steps from checkpoint to checkpoint (default: none)")
    output.add_argument(
        "--save_total_limit", type=int, help="checkpoints to keep; older ones are removed (default: all)"
    )
    output.add_argument("--with_tracking", action="store_true", help="log the metrics to experiment trackers as well")
    output.add_argument(
        "--report_to",
        default="all",
        help="tensorboard, wandb, ... with --with_tracking (default: all that are installed)",
    )
    output.add_argument(
        "--resume_from_checkpoint",
        default="latest",
        help="a checkpoint-STEP folder of a run with the same arguments (default: latest, the last one of a run that "
        "was interrupted in --output_dir; none, a new run)",
    )
    hub.add_arguments(parser)
    add_debug(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace, num_processes: int):
    """Refuses what cannot run, and derives steps of accumulation from batch sizes (or the other way round)."""
    batch_sizes = (
        "total_train_batch_size per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps"
    )
    steps = "max_train_steps num_train_epochs logging_steps eval_steps checkpointing_steps save_total_limit"
    others = "learning_rate adam_epsilon max_grad_norm sampling_temperature num_shards"
    positive = f"max_seq_length min_seq_length mlm_span {others} {batch_sizes} {steps}".split()
    for name in positive:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} must be greater than 0, is {value}")
    if args.num_warmup_steps is not None and args.num_warmup_steps < 0:
        raise UsageError(f"--num_warmup_steps must not be negative, is {args.num_warmup_steps}")
    for name in ["weight_decay", "dataloader_num_workers"]:
        if not 0 <= getattr(args, name) < math.inf:
            raise UsageError(f"--{name} must not be negative, is {getattr(args, name)}")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to 2^32 - 1, is {args.seed}")
    for name in ["adam_beta1", "adam_beta2"]:
        if not 0 <= getattr(args, name) < 1:
            raise UsageError(f"--{name} must be from 0 to below 1, is {getattr(args, name)}")
    if not 0 < args.mlm_probability <= 1:
        raise UsageError(f"--mlm_probability must be above 0 and at most 1, is {args.mlm_probability}")
    if args.mlm_span > max(1, args.max_seq_length - 2):
        raise UsageError(f"--mlm_span {args.mlm_span} is longer than a sequence: of --max_seq_length two are special")
    if not 0 <= args.boundary_dropout <= 1:
        raise UsageError(f"--boundary_dropout must be from 0 to 1, is {args.boundary_dropout}")
    if args.model_name_or_path and (args.config_name or args.config_overrides):
        raise UsageError("--config_name and --config_overrides are for new models: leave out --model_name_or_path")
    if args.max_train_steps and args.num_train_epochs:
        raise UsageError("give --max_train_steps or --num_train_epochs, not both")
    if args.push_to_hub and args.num_shards > 1:
        raise UsageError("--num_shards only prepares, and trains no model to push: leave out --push_to_hub")
    if args.hub_strategy == "checkpoint" and not args.checkpointing_steps:
        raise UsageError("--hub_strategy checkpoint has none to push: give --checkpointing_steps")
    check_data_args(args)
    if args.num_shards > 1 and num_processes > 1:
        raise UsageError(f"--num_shards prepares with one process: not with {num_processes}, they would do the same")
    if not args.num_train_epochs:
        args.max_train_steps = args.max_train_steps or 500_000

    forward = args.per_device_train_batch_size * num_processes
    if args.gradient_accumulation_steps:
        args.total_train_batch_size = forward * args.gradient_accumulation_steps
    if args.total_train_batch_size % forward:
        raise UsageError(
            f"--total_train_batch_size {args.total_train_batch_size} is not a multiple of {forward} "
            f"(--per_device_train_batch_size {args.per_device_train_batch_size} on {num_processes} process(es))"
        )
    args.gradient_accumulation_steps = args.total_train_batch_size // forward


def check_data_args(args: argparse.Namespace):
    """Refuses data arguments that contradict each other, and sets the lengths of windows."""
    args.min_seq_length = args.min_seq_length or args.max_seq_length
    if args.max_seq_length < 3:  # [CLS], a token and [SEP]
        raise UsageError(f"--max_seq_length must be at least 3, is {args.max_seq_length}")
    try:
        batches.window_lengths(max(args.min_seq_length, 3), args.max_seq_length)
    except ValueError as error:
        raise UsageError(f"--min_seq_length {args.min_seq_length}: {error}; 128 is of 256, 512, 1024, …") from error
    if bool(args.train_file) == bool(args.dataset_name):
        raise UsageError("give --train_file or --dataset_name: one of them, and not both")
    if args.dataset_config_name and not args.dataset_name:
        raise UsageError("--dataset_config_name is one of a --dataset_name")
    if not 0 <= args.shard_index < args.num_shards:
        raise UsageError(f"--shard_index must be from 0 to --num_shards - 1 = {args.num_shards - 1}")
    if args.validation_split_percentage is not None:
        if args.validation_file or args.streaming:
            raise UsageError(
                "--validation_split_percentage holds regions of prepared training files out: leave it out with "
                "--validation_file and with --streaming, which validates on --validation_file alone"
            )
    else:
        args.validation_split_percentage = 0.0 if args.validation_file or args.streaming else 1.0
    if not 0 <= args.validation_split_percentage < 100:
        raise UsageError(
            f"--validation_split_percentage must be from 0 to below 100, is {args.validation_split_percentage}"
        )
    if args.eval_steps and not args.validation_split_percentage and not args.validation_file:
        raise UsageError("--eval_steps has nothing to validate on: give --validation_file")
    if args.sampling_temperature < 1:
        raise UsageError(f"--sampling_temperature must be at least 1, is {args.sampling_temperature}")
    if args.streaming and args.num_train_epochs:
        raise UsageError("--streaming does not know how long an epoch is: give --max_train_steps")
    if args.streaming and args.num_shards > 1:
        raise UsageError("--streaming prepares nothing: leave out --num_shards")
    if not args.streaming and any("://" in name for name in args.train_file or ()):
        raise UsageError("--train_file names a URL: add --streaming, or fetch the file")
    if any("://" in name for name in args.validation_file or ()):
        raise UsageError("--validation_file names a URL: fetch the file")


def set_schedule(args: argparse.Namespace, train_sequences: int | None):
    """Sets the steps of the run and of its warm-up where they follow from the corpus or from each other."""
    if args.num_train_epochs:
        args.max_train_steps = math.ceil(args.num_train_epochs * train_sequences / args.total_train_batch_size)
    if args.num_warmup_steps is None:
        args.num_warmup_steps = round(WARMUP_SHARE * args.max_train_steps)
    if args.num_warmup_steps > args.max_train_steps:
        raise UsageError(
            f"--num_warmup_steps {args.num_warmup_steps} are more than the {args.max_train_steps} steps of the run: "
            "the learning rate would never reach its value"
        )
