"""A plain convolutional network on one-hot bases, trained and judged by run_gue.py itself: what pretraining must beat.

    python benchmarks/cnn.py --data_dir GUE --tasks all --seeds 42 43 44 --output_dir output/cnn

It is Basset (Kelley, Snoek and Rinn, Genome Research 26:990, 2016): three convolutions of 300, 200 and 200 filters,
19, 11 and 7 bases wide, each with BatchNorm, ReLU and max pooling (3, 4, and to ten places); two layers of 1,000 with
dropout of 0.3; 4 M parameters. Basset reads 600 bases, GUE's rows have 70 to 1,000: so convolutions are padded, and
the last pooling leaves the ten places that Basset has, whatever the length.

All arguments are run_gue.py's, except those of the model; splits, seeds, batches, steps, AdamW, and the choice by
dev's loss are its, too. Only --learning_rate has a default of its own, 3e-3: fresh weights want a higher one than the
3e-5 of the published recipe.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from dnabert2.files import write_whole
from dnabert2.loading import ROOT
from dnabert2.tokenization import build_tokenizer, tokenizer_config


LEARNING_RATE = "3e-3"
FILTERS, WIDTHS, POOLS = (300, 200, 200), (19, 11, 7), (3, 4, None)
PLACES, HIDDEN, DROPOUT = 10, 1000, 0.3
FIRST_BASE = 5  # A, C, G and T are tokens 5 to 8 of every tokenizer of dnabert2.tokenization


class BassetConfig(PreTrainedConfig):
    model_type = "basset"

    pad_token_id: int | None = 3


class BassetForSequenceClassification(PreTrainedModel):
    """Logits of rows of bases; what is no A, C, G or T, as [CLS] and padding, is a column of zeros."""

    config_class = BassetConfig
    base_model_prefix = "layers"

    def __init__(self, config: BassetConfig):
        super().__init__(config)
        layers, channels = [], 4
        for filters, width, pool in zip(FILTERS, WIDTHS, POOLS, strict=True):
            pooling = nn.MaxPool1d(pool, ceil_mode=True) if pool else nn.AdaptiveMaxPool1d(PLACES)
            convolution = nn.Conv1d(channels, filters, width, padding="same")
            layers += [convolution, nn.BatchNorm1d(filters), nn.ReLU(), pooling]
            channels = filters
        layers.append(nn.Flatten())
        for size in (PLACES * channels, HIDDEN):
            layers += [nn.Linear(size, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(HIDDEN, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        """torch's own."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Of token ids [rows, length]; padding is told by its id."""
        bases = torch.arange(FIRST_BASE, FIRST_BASE + 4, device=input_ids.device)
        one_hot = (input_ids[:, None] == bases[:, None]).to(self.classifier.weight.dtype)  # [rows, 4, length]
        hidden_states = self.layers(one_hot)
        return SequenceClassifierOutput(logits=self.classifier(hidden_states))


def save_untrained(folder: Path):
    """Saves what --config_name and --tokenizer_name take: sizes, and a tokenizer whose tokens are single bases."""
    folder.mkdir(parents=True, exist_ok=True)
    BassetConfig().save_pretrained(folder)
    write_whole(folder / "tokenizer.json", build_tokenizer([]).to_str() + "\n")
    write_whole(folder / "tokenizer_config.json", json.dumps(tokenizer_config(), indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="as of run_gue.py; basset/ in it is the model")
    parser.add_argument("--learning_rate", default=LEARNING_RATE, help=f"its highest value (default: {LEARNING_RATE})")
    args, others = parser.parse_known_args()
    AutoConfig.register(BassetConfig.model_type, BassetConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(BassetConfig, BassetForSequenceClassification, exist_ok=True)
    folder = args.output_dir / BassetConfig.model_type
    save_untrained(folder)
    own = ["--config_name", str(folder), "--tokenizer_name", str(folder), "--learning_rate", args.learning_rate]
    sys.argv = ["run_gue.py", "--output_dir", str(args.output_dir), *own, *others]
    runpy.run_path(str(ROOT / "run_gue.py"), run_name="__main__")


if __name__ == "__main__":
    main()
