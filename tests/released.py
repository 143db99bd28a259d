"""Releases made here: the released names, shapes and files, other weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from models import ROOT
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from dnabert2.tokenization import SPECIAL_TOKENS


# as the released config.json: BERT's keys, code of its own, no pad_token_id, sizes of the 117M
RELEASED_CONFIG = {
    "alibi_starting_size": 512,
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel"},
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.28.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 4096,
}
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 16,
}
DECODER, EMBEDDINGS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


def released_shapes(config: dict) -> dict[str, list[int]]:
    """Names and shapes of the released masked language model."""
    H, I, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]  # noqa: E741

    def norm(name):
        return {f"{name}.weight": [H], f"{name}.bias": [H]}

    shapes = {EMBEDDINGS: [V, H], "bert.embeddings.token_type_embeddings.weight": [config["type_vocab_size"], H]}
    shapes |= norm("bert.embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"bert.encoder.layer.{layer}"
        attention = f"{name}.attention"
        shapes |= {f"{attention}.self.Wqkv.weight": [3 * H, H], f"{attention}.self.Wqkv.bias": [3 * H]}
        shapes |= {f"{attention}.output.dense.weight": [H, H], f"{attention}.output.dense.bias": [H]}
        shapes |= norm(f"{attention}.output.LayerNorm") | {f"{name}.mlp.gated_layers.weight": [2 * I, H]}
        shapes |= {f"{name}.mlp.wo.weight": [H, I], f"{name}.mlp.wo.bias": [H]} | norm(f"{name}.mlp.layernorm")
    head = "cls.predictions.transform"
    shapes |= {f"{head}.dense.weight": [H, H], f"{head}.dense.bias": [H]} | norm(f"{head}.LayerNorm")
    return shapes | {DECODER: [V, H], "cls.predictions.decoder.bias": [V]}


def released_weights(config: dict) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = released_shapes(config)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return weights | {DECODER: weights[EMBEDDINGS]}


def pooler_and_classifier(config: dict, labels: int = 3) -> dict[str, torch.Tensor]:
    size = config["hidden_size"]
    shapes = {"bert.pooler.dense.weight": [size, size], "bert.pooler.dense.bias": [size]}
    shapes |= {"classifier.weight": [labels, size], "classifier.bias": [labels]}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def stand_in_tokenizer() -> str:
    """Made like the released tokenizer.json: no normalizer, no decoder, 16 tokens."""
    merges = [("A", "A"), ("T", "T"), ("T", "G"), ("C", "A")]
    tokens = [*SPECIAL_TOKENS, "A", "C", "G", "T", *map("".join, merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer.to_str(pretty=True)


def release(folder: Path, weights: dict | None = None, tokenizer: str | None = None, **config) -> Path:
    """A folder as on the Hub, with code that tells of itself if it is run."""
    config = RELEASED_CONFIG | SMALL | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(tokenizer or stand_in_tokenizer())
    for file in ("configuration_bert.py", "bert_layers.py"):
        (folder / file).write_text(f"open({str(folder / 'was_run')!r}, 'w')\nraise SystemExit('run')\n")
    torch.save(released_weights(config) if weights is None else weights, folder / "pytorch_model.bin")
    return folder


def in_a_fresh_process(program: str, *arguments, home: Path, environment=None) -> subprocess.CompletedProcess:
    environment = environment or os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", program] if "\n" in program else ["-m", program]), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
