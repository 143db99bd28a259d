"""Configuration of DNABERT-2: the sizes and switches of the encoder. Travels with every checkpoint as remote code."""

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


class DNABert2Config(PreTrainedConfig):
    r"""
    Sizes and switches of a DNABERT-2 encoder (Zhou et al., arXiv 2306.15006). The defaults are the released 117M's.

    The released `config.json` loads as it is: names follow BERT's, and keys without a meaning here
    (`alibi_starting_size`, `max_position_embeddings`, `position_embedding_type`, ...) are kept but unused, because
    ALiBi (arXiv 2108.12409) needs no maximum length.

    Args:
        vocab_size (`int`): entries of the BPE vocabulary.
        hidden_size (`int`): width of the residual stream; a multiple of `num_attention_heads`.
        num_hidden_layers (`int`): number of encoder layers.
        num_attention_heads (`int`): attention heads a layer. Flash-attn wants a head dimension of 64 or so.
        intermediate_size (`int`): width of the gated product in the GEGLU (arXiv 2002.05202).
        hidden_act (`str`): activation of the gate and of the MLM head; `"gelu"` is the exact (erf) one.
        hidden_dropout_prob (`float`): dropout on embeddings, attention output and the gated product.
        attention_probs_dropout_prob (`float`): dropout on attention probabilities.
        classifier_dropout (`float`, *optional*): dropout before a classifier; `hidden_dropout_prob` if not given.
        type_vocab_size (`int`): number of token types (first and second sequence).
        initializer_range (`float`): standard deviation of freshly drawn weights.
        layer_norm_eps (`float`): epsilon of the encoder's LayerNorms.
        low_precision_layernorm (`bool`): under autocast, LayerNorm computes in the autocast dtype instead of fp32.
        pad_token_id, tie_word_embeddings: as in transformers; the base class of version 5 has neither.

    Raises:
        ValueError: for a size that is not a positive whole number, or a `hidden_size` that is not a multiple of
            `num_attention_heads`.
    """

    model_type = "dnabert2"

    vocab_size: int = 4096
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout: float | None = None
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    low_precision_layernorm: bool = False
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self):
        """Also called by every model: what `from_pretrained` is given as keywords is set after `__post_init__`."""
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "type_vocab_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            rate = getattr(self, name)
            if not (rate is None and name == "classifier_dropout") and not 0 <= rate <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {rate!r}")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be above 0, got {self.layer_norm_eps!r}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be from 0 to vocab_size - 1, got {self.pad_token_id!r}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}): every head has the same dimension"
            )
