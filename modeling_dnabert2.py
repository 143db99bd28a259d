"""DNABERT-2 (Zhou et al., arXiv 2306.15006): a BERT encoder with ALiBi and GEGLU for DNA cut into BPE tokens.

Remote code: this file and the other three `*_dnabert2.py` travel with every checkpoint. They need torch and
transformers, and use flash-attn and triton where these are.

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

from .attention_dnabert2 import (
    ATTENTION_FUNCTIONS,
    UNPADDED,
    DNABert2Alibi,
    SequenceLayout,
    alibi_slopes,
    check_packed,
    require_flash_attention,
    unpad,
)
from .configuration_dnabert2 import DNABert2Config
from .kernels_dnabert2 import can_run, geglu, hashed_dropout


logger = logging.get_logger(__name__)


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


class DNABert2Dropout(nn.Dropout):
    """Dropout, of a kind that costs next to nothing in a model compiled for a GPU."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_compiled = torch.compiler.is_compiling() and hidden_states.is_cuda and hidden_states.numel() < 2**31
        if is_compiled and self.training and 0 < self.p < 1:
            return hashed_dropout(hidden_states, self.p)
        return super().forward(hidden_states)


class DNABert2Embeddings(nn.Module):
    """Word plus token-type embeddings, normalised. No position embedding: ALiBi takes its place."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = DNABert2LayerNorm(config, eps=config.layer_norm_eps)
        self.dropout = DNABert2Dropout(config.hidden_dropout_prob)

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
        self.dropout = DNABert2Dropout(config.hidden_dropout_prob)

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
    """
    GEGLU (arXiv 2002.05202, eq. 6) with post-LN: LN(wo(dropout(act(gate)·up)) + x); the gate comes first. On a GPU one
    kernel does what `act` and `dropout` would: their own hooks are not called there.
    """

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.has_kernel = config.hidden_act == "gelu"
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = DNABert2Dropout(config.hidden_dropout_prob)
        self.layernorm = DNABert2LayerNorm(config, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate_up = self.gated_layers(hidden_states)
        if self.has_kernel and can_run(gate_up) and self.dropout.p < 1:
            product = geglu(gate_up, self.dropout.p if self.dropout.training else 0.0)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            product = self.dropout(self.act(gate) * up)
        return self.layernorm(self.wo(product) + hidden_states)


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

    def forward(self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """The first token of every row, or of every packed sequence, (batch or sequences, hidden_size)."""
        if cu_seqlens is None:
            first = hidden_states[:, 0]
        else:  # not [0, cu_seqlens[:-1]]: its backward sorts the indices
            first = hidden_states.index_select(1, cu_seqlens[:-1])[0]
        return torch.tanh(self.dense(first))


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
    _supports_flash_attn = True
    _supports_flex_attn = True
    _compatible_flash_implementations = ["flash_attention_2"]  # the others have no ALiBi
    _no_split_modules = ["DNABert2Embeddings", "DNABert2Layer"]

    def __init__(self, config: DNABert2Config):
        config.validate_architecture()
        super().__init__(config)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers searches the source for its own registry's name and, not finding it, ignores the user's call
        return True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        if attn_implementation and "flash" in attn_implementation:
            require_flash_attention()  # without it, transformers may take a kernel from the Hub that has no ALiBi
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _flash_attn_can_dispatch(self, *args, **kwargs) -> bool:
        require_flash_attention()  # in place of transformers' check, which warns of float32 weights even for autocast
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
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
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
            cu_seqlens: for sequences packed into one row, `input_ids` (1, tokens): where each begins and the last
                ends, int32 (sequences + 1,). No token sees another sequence. In place of `attention_mask`.
            max_seqlen: the longest packed sequence's tokens, or more; found out if not given. While a CUDA graph is
                recorded it must be, and `cu_seqlens` cannot be checked, then or at a replay.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), exactly 0 at padding, and `pooler_output`
            (batch or sequences, hidden_size) or None.

        Raises:
            ValueError: for neither or both of ids and embeddings, a mask of another shape, `cu_seqlens` that do not
                fit, or an attention back end that is not this model's own (it would lose ALiBi) or cannot run here.
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

        name = self._attention_name(output_attentions)
        positions, layout = None, SequenceLayout(attention_mask)
        if cu_seqlens is not None:
            if attention_mask is not None:
                raise ValueError("packed sequences have no padding: give cu_seqlens or attention_mask, not both")
            layout = check_packed(shape, cu_seqlens, max_seqlen)
        elif max_seqlen is not None:
            raise ValueError("max_seqlen is of packed sequences: give cu_seqlens too")
        elif attention_mask is not None and name in UNPADDED:
            positions, layout = unpad(attention_mask)
            if layout.attention_mask is not None:
                logger.warning_once(f"an attention_mask with holes, or of padding alone, is not for {name}: sdpa runs")
                name = "sdpa"

        if token_type_ids is not None:
            token_type_ids = token_type_ids.expand(shape)
        if positions is not None:  # the only place where padding is taken out; `restore` puts it back
            input_ids, token_type_ids, inputs_embeds = (
                None if tensor is None else tensor.flatten(0, 1)[positions][None]
                for tensor in (input_ids, token_type_ids, inputs_embeds)
            )

        def restore(hidden_states: torch.Tensor) -> torch.Tensor:
            device = hidden_states.device  # the last layer's: `device_map` may have spread them
            if positions is not None:
                padded = hidden_states.new_zeros(shape[0] * shape[1], hidden_states.shape[-1])
                return padded.index_copy(0, positions.to(device), hidden_states[0]).unflatten(0, shape)
            if attention_mask is not None:
                return hidden_states.masked_fill(~attention_mask.bool()[:, :, None].to(device), 0.0)
            return hidden_states

        hidden_states = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        prepare, attention = ATTENTION_FUNCTIONS[name]
        attention_inputs = prepare(hidden_states, layout, self.encoder.alibi)

        all_hidden_states = (restore(hidden_states),) if output_hidden_states else ()
        all_attentions = ()
        for layer in self.encoder.layer:
            hidden_states, probabilities = layer(hidden_states, attention=attention, **attention_inputs)
            if output_hidden_states:
                all_hidden_states += (restore(hidden_states),)
            if output_attentions:
                all_attentions += (probabilities,)
        hidden_states = restore(hidden_states)

        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states, cu_seqlens),
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )

    def _attention_name(self, output_attentions: bool) -> str:
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
        return name


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
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(logits.device)
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
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        prediction_positions: torch.Tensor | None = None,
    ) -> MaskedLMOutput:
        """
        Args (the others are `DNABert2Model`'s):
            labels: token ids to predict, -100 where there is nothing to predict, (batch, length). As in all of
                transformers, the loss of a batch without any label is NaN.
            num_items_in_batch: the loss is the sum over labels divided by this number instead of their mean.
            prediction_positions: compute logits at these alone, int64 (n,), positions in the flattened batch; `labels`
                are then theirs, (n,). Of a fixed n, filled up with any position and label -100, the compiler can make
                one program of every batch.

        Returns:
            `loss` in nats a labelled token, and `logits` (batch, length, vocab_size), or (n, vocab_size).
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
        )
        hidden_states = outputs.last_hidden_state
        if prediction_positions is not None:
            hidden_states = hidden_states.flatten(0, 1)[prediction_positions.to(hidden_states.device)]
        if labels is not None and labels.shape != hidden_states.shape[:-1]:
            raise ValueError(f"labels must be {tuple(hidden_states.shape[:-1])}, are {tuple(labels.shape)}")

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
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
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
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
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
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
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
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def classifier_dropout(config: DNABert2Config) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
