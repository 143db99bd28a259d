"""What tests of the model share: tiny configurations, models built from the repository's remote code, batches, the
released DNABERT-2 code's weights, inputs and outputs, and comparisons."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


ROOT = Path(__file__).resolve().parent.parent
CODE_FILES = tuple(f"{name}_dnabert2.py" for name in ("attention", "configuration", "kernels", "modeling"))
BACK_ENDS = ("eager", "sdpa")
FORWARD_BACK_ENDS = (*BACK_ENDS, "flex_attention")  # flex has no backward on a CPU, and wants torch.no_grad() there
LOW_PRECISION = (torch.bfloat16, torch.float16)
AUTO_CLASSES = (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,  # ten times the usual: attention that is far from uniform
}


def make_config(**values):
    """A `DNABert2Config` of these values, its other values the class's defaults, that knows where its code is."""
    root = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    return type(root)(**{"auto_map": root.auto_map, "name_or_path": str(ROOT)} | values)


def tiny_config(**values):
    return make_config(**TINY | values)


def build(auto_class=AutoModelForMaskedLM, attention="sdpa", seed=0, dtype=torch.float32, config=None, **values):
    """A model in eval mode, with weights drawn from `seed`: tiny, with `values` changed, unless `config` is given."""
    torch.manual_seed(seed)
    config = config or tiny_config(**values)
    model = auto_class.from_config(config, trust_remote_code=True, attn_implementation=attention, dtype=dtype)
    return model.eval()


def draw_biases(model, seed=2):
    """
    Biases as a trained model has them. Fresh ones are zero, and with them the MLM head's rows at padding. A LayerNorm
    divides those by sqrt(eps) = 1e-6; torch's float16 kernel on a CPU keeps the inverse, infinity, for its backward.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return model


def load(auto_class, folder, attention="sdpa", **options):
    return auto_class.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention, **options)


def remote_module(model):
    """The module `modeling_dnabert2` as transformers imported it for this model."""
    return sys.modules[type(model).__module__]


def encoder(model):
    return model.base_model.encoder


def random_ids(*shape, vocab_size=TINY["vocab_size"], seed=1):
    return torch.randint(5, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def masks(length, *kept):
    """An attention mask (rows, length), a row a slice or list of the positions that are tokens."""
    mask = torch.zeros(len(kept), length, dtype=torch.long)
    for row, positions in enumerate(kept):
        mask[row, positions] = 1
    return mask


def four_masks(length):
    """Rows without padding, padded right, padded left, and with holes."""
    holed = [position for position in range(length) if position % 5 not in (1, 2)]
    return masks(length, slice(None), slice(0, length - 7), slice(6, None), holed)


def padded_batch(length=24, seed=1):
    """Ids and labels of four rows, with the masks of `four_masks`; a third of the tokens are labelled."""
    ids, mask = random_ids(4, length, seed=seed), four_masks(length)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.33
    labels = ids.masked_fill(~(chosen & mask.bool()), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def worst(actual, expected):
    """The largest absolute difference; NaN, which no bound admits, if there is a NaN."""
    return (actual.detach().double() - expected.detach().double()).abs().max().item()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal_tensors(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@dataclass
class ReleasedCase:
    """Inputs, weights and float64 outputs of the released code, and its configuration as released."""

    config: dict
    weights: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    mlm_labels: torch.Tensor
    cls_labels: torch.Tensor
    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]  # of the MLM loss; the tiny case alone has them
    mlm_loss_of_all_labels: torch.Tensor  # the release left label 0 out; here it counts, as all but -100

    def save(self, folder: Path):
        """Write what a converter makes of the release: its configuration and weights, with this package's code."""
        root = json.loads((ROOT / "config.json").read_text())
        code = {key: root[key] for key in ("model_type", "auto_map")}
        (folder / "config.json").write_text(json.dumps(self.config | code))
        save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
        for file in CODE_FILES:
            shutil.copy(ROOT / file, folder)

    @property
    def padding(self) -> torch.Tensor:
        return ~self.inputs["attention_mask"].bool()


def tiny_case() -> ReleasedCase:
    file = Path(__file__).parent / "tiny_released_case.safetensors"
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    tensors = load_file(file)

    def pick(prefix):
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return ReleasedCase(
        config=config,
        weights=pick("weight."),
        inputs={key: tensors[key] for key in inputs},
        mlm_labels=tensors["mlm_labels"],
        cls_labels=tensors["cls_labels"],
        outputs={key: value for key, value in tensors.items() if value.dtype == torch.float64},
        gradients=pick("grad."),
        mlm_loss_of_all_labels=tensors["mlm_loss"],  # no label is 0 in this case
    )


def larger_case(folder: Path) -> ReleasedCase:
    inputs = load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs.safetensors")
    info = json.loads((folder / "info.json").read_text())
    return ReleasedCase(
        config=json.loads((folder / "config.json").read_text()),
        weights=load_file(folder / "state_dict.safetensors"),
        mlm_labels=inputs.pop("mlm_labels"),
        cls_labels=inputs.pop("cls_labels"),
        inputs=inputs,
        outputs=outputs,
        gradients={},
        mlm_loss_of_all_labels=torch.tensor(info["mlm_loss_if_label_0_counted_float64"], dtype=torch.float64),
    )
