"""DNABERT-2 (Zhou et al., arXiv 2306.15006): a BERT encoder with ALiBi and GEGLU for DNA cut into BPE tokens.

Remote code: this file and `configuration_dnabert2.py` travel with every checkpoint and need torch and transformers.

    model = AutoModelForMaskedLM.from_pretrained("user/name", trust_remote_code=True)

Module names are those of the released checkpoint, which therefore loads unchanged.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple, logging

from .configuration_dnabert2 import DNABert2Config


logger = logging.get_logger(__name__)


# --- attention ---------------------------------------------------------------------------------------------------


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """
    The slope of every head's linear distance penalty, float32 of shape (num_heads,): ALiBi, arXiv 2108.12409, §3.

    A power of two n gives 2^(-8(i+1)/n). Other counts take the slopes of the largest power of two below, then every
    second slope of twice that power, as the authors' code does.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4.0 * (head + 1) / power) for head in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


class DNABert2Alibi(nn.Module):
    """Additive attention bias -slope·|i - j|, of any length: nothing is precomputed to a maximum."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.register_buffer("slopes", alibi_slopes(self.num_heads), persistent=False)

    def _apply(self, fn, recurse=True):
        # Slopes stay float32, and exact, whatever the model is cast to: rounding 2^-0.5 to bf16 moves the bias of
        # distant tokens by whole units. This also refills the buffer after `to_empty`.
        super()._apply(fn, recurse)
        self.slopes = alibi_slopes(self.num_heads).to(self.slopes.device)
        return self

    def forward(self, length: int) -> torch.Tensor:
        """Bias of shape (1, heads, length, length), float32."""
        position = torch.arange(length, device=self.slopes.device, dtype=torch.float32)
        distance = (position[:, None] - position[None, :]).abs_()
        return distance * -self.slopes[None, :, None, None]


def eager_attention(
    qkv: torch.Tensor, attention_bias: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(QKᵀ/√d + bias)·V written out; also returns the probabilities (batch, heads, length, length)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)) + attention_bias
    probabilities = nn.functional.dropout(scores.softmax(dim=-1), p=dropout)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def sdpa_attention(qkv: torch.Tensor, attention_bias: torch.Tensor, dropout: float) -> tuple[torch.Tensor, None]:
    """The same through torch's fused kernels."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_bias, dropout_p=dropout
    )
    return context.transpose(1, 2), None


def compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products on `hidden_states`: autocast's where it is on."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden_states.dtype


def dense_attention_bias(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, alibi: DNABert2Alibi
) -> dict[str, torch.Tensor]:
    """What eager and sdpa need of the mask: ALiBi with padded keys at -inf, (1 or batch, heads, length, length)."""
    bias = alibi(hidden_states.shape[1]).to(compute_dtype(hidden_states))
    if attention_mask is None:
        return {"attention_bias": bias}
    is_token = attention_mask.bool()
    # A row of padding alone attends to everything, so that its softmax is finite; its output is zeroed later.
    is_key = is_token | ~is_token.any(dim=-1, keepdim=True)
    return {"attention_bias": bias.masked_fill(~is_key[:, None, None, :], float("-inf"))}


# Attention back ends by their name in transformers: what makes a back end's own inputs of the mask, once a forward,
# and the attention itself, qkv (batch, length, 3, heads, head_dim) to context (batch, length, heads, head_dim). Not in
# transformers' own registry on purpose: any function there that is not ours would lose ALiBi without a word.
ATTENTION_FUNCTIONS = {
    "eager": (dense_attention_bias, eager_attention),
    "sdpa": (dense_attention_bias, sdpa_attention),
}


# --- layers ------------------------------------------------------------------------------------------------------


class DNABert2LayerNorm(nn.LayerNorm):
    """LayerNorm; with `low_precision_layernorm`, in the autocast dtype where autocast would choose float32."""

    def __init__(self, config: DNABert2Config, eps: float):
        super().__init__(config.hidden_size, eps=eps)
        self.low_precision = config.low_precision_layernorm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device_type = hidden_states.device.type
        if not (self.low_precision and torch.is_autocast_enabled(device_type)):
            return super().forward(hidden_states)
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return nn.functional.layer_norm(
                hidden_states.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps
            )


class DNABert2Embeddings(nn.Module):
    """Word plus token-type embeddings, normalised. No position embedding: ALiBi takes its place."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = DNABert2LayerNorm(config, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(inputs_embeds + token_types))


class DNABert2SelfAttention(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention, **attention_kwargs):
        # rows of Wqkv: all of Q, all of K, all of V, the heads contiguous in each
        qkv = self.Wqkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        dropout = self.attention_dropout if self.training else 0.0
        context, probabilities = attention(qkv, dropout=dropout, **attention_kwargs)
        return context.flatten(-2), probabilities


class DNABert2SelfOutput(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = DNABert2LayerNorm(config, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(context)) + residual)


class DNABert2Attention(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.self = DNABert2SelfAttention(config)
        self.output = DNABert2SelfOutput(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, probabilities = self.self(hidden_states, **kwargs)
        return self.output(context, hidden_states), probabilities


class DNABert2GatedMLP(nn.Module):
    """GEGLU (arXiv 2002.05202, eq. 6) with post-LN: LN(wo(dropout(act(gate)·up)) + x); the gate comes first."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = DNABert2LayerNorm(config, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gated_layers(hidden_states).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(self.act(gate) * up)) + hidden_states)


class DNABert2Layer(GradientCheckpointingLayer):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.attention = DNABert2Attention(config)
        self.mlp = DNABert2GatedMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states, probabilities = self.attention(hidden_states, **kwargs)
        return self.mlp(hidden_states), probabilities


class DNABert2Encoder(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.alibi = DNABert2Alibi(config)
        self.layer = nn.ModuleList(DNABert2Layer(config) for _ in range(config.num_hidden_layers))


class DNABert2Pooler(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_states[:, 0]))


class DNABert2PredictionHeadTransform(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = DNABert2LayerNorm(config, eps=1e-12)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.act(self.dense(hidden_states)))


class DNABert2LMPredictionHead(nn.Module):
    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.transform = DNABert2PredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))


class DNABert2OnlyMLMHead(nn.Module):
    """Exists for its name alone: the checkpoint's keys begin with `cls.predictions`."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.predictions = DNABert2LMPredictionHead(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden_states)


# --- models ------------------------------------------------------------------------------------------------------


class DNABert2PreTrainedModel(PreTrainedModel):
    config_class = DNABert2Config
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer: `num_items_in_batch` is a parameter of every forward that has labels
    _supports_sdpa = True
    _no_split_modules = ["DNABert2Embeddings", "DNABert2Layer"]

    def __init__(self, config: DNABert2Config):
        config.validate_architecture()
        super().__init__(config)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers searches the source for its own registry's name and, not finding it, ignores the user's call
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, DNABert2Alibi):  # loading builds on the meta device and leaves buffers as garbage
            init.copy_(module.slopes, alibi_slopes(module.num_heads))


class DNABert2Model(DNABert2PreTrainedModel):
    """The encoder, with a pooler on the first token unless `add_pooling_layer=False`."""

    def __init__(self, config: DNABert2Config, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = DNABert2Embeddings(config)
        self.encoder = DNABert2Encoder(config)
        self.pooler = DNABert2Pooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: token ids, (batch, length). Exactly one of `input_ids` and `inputs_embeds` is needed.
            attention_mask: 1 for tokens, 0 for padding, (batch, length); all ones if not given. Padding may be on
                either side or in the middle: distances are those of the padded rows.
            token_type_ids: 0 or 1 for the first or second sequence, (batch, length); zeros if not given.
            inputs_embeds: word embeddings in place of ids, (batch, length, hidden_size).
            output_attentions: also return every layer's attention probabilities, (batch, heads, length, length),
                computed by the eager back end whichever is chosen.
            output_hidden_states: also return the embeddings and every layer's output.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), exactly 0 at padding, and `pooler_output`
            (batch, hidden_size) or None.

        Raises:
            ValueError: for neither or both of ids and embeddings, a mask of another shape, or an attention back end
                that is not this model's own (it would lose ALiBi).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if attention_mask is not None and attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask must be (batch, length) = {tuple(shape)}, is {tuple(attention_mask.shape)}"
            )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        hidden_states = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        prepare, attention = self._attention_function(output_attentions)
        attention_inputs = prepare(hidden_states, attention_mask, self.encoder.alibi)

        all_hidden_states, all_attentions = (hidden_states,), ()
        for layer in self.encoder.layer:
            hidden_states, probabilities = layer(hidden_states, attention=attention, **attention_inputs)
            if output_hidden_states:
                all_hidden_states += (zero_padding(hidden_states, attention_mask),)
            if output_attentions:
                all_attentions += (probabilities,)
        hidden_states = zero_padding(hidden_states, attention_mask)

        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )

    def _attention_function(self, output_attentions: bool):
        name = self.config._attn_implementation
        if name not in ATTENTION_FUNCTIONS:
            raise ValueError(
                f'attn_implementation="{name}" is not one of this model\'s own {sorted(ATTENTION_FUNCTIONS)}; '
                "any other would drop ALiBi and give wrong numbers"
            )
        if output_attentions and name != "eager":
            logger.warning_once(
                f"{name} attention has no weights to return: output_attentions=True runs the eager one"
            )
            name = "eager"
        return ATTENTION_FUNCTIONS[name]


def zero_padding(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    if attention_mask is None:
        return hidden_states
    return hidden_states.masked_fill(~attention_mask.bool()[:, :, None], 0.0)


def token_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """
    Cross entropy in nats over the labels that are not -100: their mean, or their sum over `num_items_in_batch`.

    In float32, or in float64 where the logits are: transformers' own loss would round those to float32.
    """
    logits = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.flatten().to(logits.device)
    if num_items_in_batch is None:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


class DNABert2ForMaskedLM(DNABert2PreTrainedModel):
    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.bert = DNABert2Model(config, add_pooling_layer=False)
        self.cls = DNABert2OnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        self.cls.predictions.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        sparse_prediction: bool = False,
    ) -> MaskedLMOutput:
        """
        Args (the others are `DNABert2Model`'s):
            labels: token ids to predict, -100 where there is nothing to predict, (batch, length). As in all of
                transformers, the loss of a batch without any label is NaN.
            num_items_in_batch: the loss is the sum over labels divided by this number instead of their mean.
            sparse_prediction: compute logits at labelled positions only: (labels, vocab_size), in row order.

        Returns:
            `loss` in nats a labelled token, and `logits` (batch, length, vocab_size).
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_states = outputs.last_hidden_state
        if sparse_prediction:
            if labels is None:
                raise ValueError("sparse_prediction=True computes logits where labels are: it needs labels")
            is_labelled = labels != -100
            hidden_states, labels = hidden_states[is_labelled], labels[is_labelled]

        logits = self.cls(hidden_states)
        loss = None if labels is None else token_cross_entropy(logits, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DNABert2ForSequenceClassification(DNABert2PreTrainedModel):
    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = DNABert2Model(config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """
        Args (the others are `DNABert2Model`'s):
            labels: class ids (batch,), or floats (batch, num_labels) for several labels at once, or floats (batch,)
                for regression. `config.problem_type` decides, or is inferred from `num_labels` and the dtype.
            num_items_in_batch: as in `DNABert2ForMaskedLM`; for floats, the number of their elements.

        Returns:
            `loss` and `logits` (batch, num_labels).
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                labels=labels, pooled_logits=logits, config=self.config, num_items_in_batch=num_items_in_batch
            )
            if num_items_in_batch is not None and self.config.problem_type != "single_label_classification":
                # there transformers' loss is the mean whatever the number, and accumulated gradients would add up
                loss = loss * labels.numel() / num_items_in_batch
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DNABert2ForTokenClassification(DNABert2PreTrainedModel):
    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = DNABert2Model(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """
        Args (the others are `DNABert2Model`'s):
            labels: class ids, -100 where there is none, (batch, length).
            num_items_in_batch: as in `DNABert2ForMaskedLM`.

        Returns:
            `loss` and `logits` (batch, length, num_labels).
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def classifier_dropout(config: DNABert2Config) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
