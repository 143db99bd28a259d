"""The main job on the embedded default, as `make pretrain` runs it: a tiny model on a synthetic corpus.

    python -m dnabert2.demo

Makes the corpus, pretrains with `accelerate launch run_mlm.py` in one to two minutes on two cores, shows the loss fall
and fills masked tokens with the result. Exit status 1 if the held-out accuracy is not clearly above what always saying
the most frequent token gives.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import pipeline

from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.synthetic import write_corpus


OUTPUT = Path("output/pretrain")
CLEARLY_ABOVE = 3  # times the accuracy of the most frequent token; 12 to 15 times is usual


def pretrain(corpus: Path, output_dir: Path):
    launcher = "accelerate launch --quiet --cpu --num_processes 1 --num_machines 1"
    launcher += " --mixed_precision no --dynamo_backend no"
    recipe = "--config_overrides hidden_dropout_prob=0 --validation_split_percentage 5 --total_train_batch_size 32"
    recipe += " --max_train_steps 600 --num_warmup_steps 60 --learning_rate 3e-3"
    output = "--logging_steps 50 --eval_steps 100 --dataloader_num_workers 0"
    command = [*launcher.split(), "--num_cpu_threads_per_process", str(os.cpu_count()), str(ROOT / "run_mlm.py")]
    command += ["--train_file", str(corpus), "--config_name", str(ROOT / "configs" / "tiny.json"), *recipe.split()]
    command += [*output.split(), "--cache_dir", str(OUTPUT / "cache"), "--output_dir", str(output_dir)]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "accelerate.commands.accelerate_cli", *command[1:]], check=True)


def show_curve(output_dir: Path):
    print("\n  step     loss  held-out loss")
    for line in (output_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        loss, held_out = (f"{values[key]:8.3f}" if key in values else " " * 8 for key in ("loss", "validation_loss"))
        print(f"{values['step']:6d} {loss} {held_out}")


def show_filled_masks(corpus: Path, output_dir: Path):
    """Masks a token in the middle of one piece of every species and prints what the model puts there."""
    fill_mask = pipeline("fill-mask", model=str(output_dir), trust_remote_code=True)
    tokenizer = load_tokenizer(output_dir)
    print("\n  species   masked token   best guesses")
    for path in sorted(corpus.glob("*.fa")):
        sequence = path.read_text().split("\n", 1)[1].replace("\n", "")[:600]
        tokens = tokenizer.tokenize(sequence)
        middle = len(tokens) // 2
        masked = "".join([*tokens[:middle], tokenizer.mask_token, *tokens[middle + 1 :]])
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.0%}" for guess in fill_mask(masked, top_k=3))
        print(f"  {path.stem:9s} {tokens[middle]:14s} {guesses}")


def main():
    corpus, output_dir = OUTPUT / "corpus", OUTPUT / "model"
    shutil.rmtree(OUTPUT, ignore_errors=True)  # this script's own, of an earlier run
    write_corpus(corpus, bases_a_species=500_000, seed=42)
    pretrain(corpus, output_dir)
    show_curve(output_dir)
    show_filled_masks(corpus, output_dir)

    results = json.loads((output_dir / "all_results.json").read_text())
    accuracy, baseline = results["validation_accuracy"], results["most_frequent_token_accuracy"]
    print(f"\nHeld-out masked tokens: {accuracy:.1%} right; always saying the most frequent token: {baseline:.1%}.")
    print(
        f"The model is in {output_dir}: AutoModelForMaskedLM.from_pretrained('{output_dir}', trust_remote_code=True)"
    )
    if not accuracy >= CLEARLY_ABOVE * baseline:  # nan too
        sys.exit(f"error: not clearly above ({CLEARLY_ABOVE} times): the model has not learned")


if __name__ == "__main__":
    main()
