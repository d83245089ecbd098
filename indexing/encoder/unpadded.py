"""BERT and RoBERTa without padding: tokens of a batch concatenated. `packed.py` runs it on GPUs.

On an x86 CPU attention is per group of equal length, and linear layers run as oneDNN primitives on weights laid out
once, GELU and residuals fused into them (the operators that torch.compile uses, without its compiler). Measured on one
thread of a Zen 4 CPU in bfloat16, with catalogue texts: 7,359 tokens/s against 6,085 of transformers' own forward pass
on the same batches; a tenth more since the softmax is divided last.

Shape letters: N tokens of all texts, B texts of one length, T tokens of a text, H hidden size, A heads, D head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from indexing.encoder.device import CPU_FLAGS, cpu_flags

FAMILY = ("bert", "roberta", "xlm-roberta", "camembert")
# In bfloat16 two products and a softmax beat torch's attention up to about this length; in float32 never for long.
LONGEST_PLAIN = {torch.bfloat16: 256, torch.float32: 32}
# Exponentials of such scores, and their sums and products, stay far from both ends of a float's range.
SAFE_SCORE = 60.0


Attend = Callable[[torch.Tensor], torch.Tensor]
"""Queries, keys and values of all tokens (N, 3H) to contexts (N, H)."""


class Linear(Protocol):
    def __call__(self, rows: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """(N, in) to (N, out), with GELU where it is asked for."""

    def plus(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The same, and `residual` added."""


class OneDnnLinear(NamedTuple):
    weight: torch.Tensor
    """In oneDNN's own layout: opaque, only valid for the call below."""
    bias: torch.Tensor

    def __call__(self, rows: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        post: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, *post)
        return result

    def plus(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")
        return result


class PlainLinear(NamedTuple):
    """For GPUs. Bias and GELU are part of the product there, in 16-bit formats: the GELU is cuBLAS's, by tanh, whose
    error is below their rounding."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, rows: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        if gelu and rows.is_cuda and rows.dtype != torch.float32:
            fused: torch.Tensor = torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)
            return fused
        result = nn.functional.linear(rows, self.weight, self.bias)
        return nn.functional.gelu(result) if gelu else result

    def plus(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, self.weight, self.bias).add_(residual)


class Layer(NamedTuple):
    query_key_value: Linear
    output: Linear
    output_norm: nn.Module
    up: Linear
    down: Linear
    down_norm: nn.Module


def can_pack(model: Any) -> bool:
    """Whether `PackedBert` computes what the model does, on this machine, in its number format."""
    config = model.config
    if model.device.type == "cuda":
        return is_bert(config) and bool(config.hidden_act == "gelu")
    flags = cpu_flags() if model.device.type == "cpu" else set()
    has_format = "avx2" in flags if model.dtype == torch.float32 else bool(CPU_FLAGS & flags)
    return (
        has_format
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and is_bert(config)
        and config.hidden_act == "gelu"
    )


def is_bert(config: Any) -> bool:
    """Whether every token attends to all others, and positions are added to the embeddings, as in BERT and RoBERTa."""
    return config.model_type in FAMILY and not config.is_decoder


class PackedBert:
    """A `Backbone` made from a model of transformers, whose linear layers are copied into another layout."""

    def __init__(self, model: Any, make: Callable[[torch.Tensor, torch.Tensor], Linear]) -> None:
        """`make` gives a linear layer of weight (out, in) and bias (out,)."""
        self.device, self.dtype = model.device, model.dtype
        embeddings = model.embeddings
        self.num_heads: int = model.config.num_attention_heads
        self._words = embeddings.word_embeddings
        self._norm = embeddings.LayerNorm
        self._positions = embeddings.position_embeddings
        self._type_H = embeddings.token_type_embeddings.weight[0]
        self.padding_id = padding_id_of(model)
        self._layers = [_pack_layer(layer, make) for layer in model.encoder.layer]

    def __call__(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See `Backbone`."""
        columns = torch.arange(input_ids.shape[1])
        inside = columns < lengths[:, None]
        positions = positions_of(input_ids, self.padding_id)
        hidden_NH = self.forward(input_ids[inside], positions[inside], self.attend_by_length(lengths))
        padded: torch.Tensor = hidden_NH.new_zeros(*input_ids.shape, hidden_NH.shape[1])
        padded[inside] = hidden_NH
        return padded

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Token vectors (N, H) of int64 ids and positions (N,)."""
        hidden_NH: torch.Tensor = self._norm(self._words(ids) + self._type_H + self._positions(positions))
        for layer in self._layers:
            context_NH = attend(layer.query_key_value(hidden_NH))
            hidden_NH = layer.output_norm(layer.output.plus(context_NH, hidden_NH))
            hidden_NH = layer.down_norm(layer.down.plus(layer.up(hidden_NH, gelu=True), hidden_NH))
        return hidden_NH

    def attend_by_length(self, lengths: torch.Tensor) -> Attend:
        """Texts of one length together; lengths is int64 (B,), on the CPU, equal ones next to each other."""
        groups = torch.stack(torch.unique_consecutive(lengths, return_counts=True), 1).tolist()

        def attend(packed: torch.Tensor) -> torch.Tensor:
            parts = torch.split(packed, [length * num_texts for length, num_texts in groups])
            contexts = [self._attend_equal(part, *group) for part, group in zip(parts, groups, strict=True)]
            return contexts[0] if len(contexts) == 1 else torch.cat(contexts)

        return attend

    def _attend_equal(self, packed: torch.Tensor, length: int, num_texts: int) -> torch.Tensor:
        split = packed.view(num_texts, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if packed.is_cuda or length > LONGEST_PLAIN[self.dtype]:
            context_BATD = nn.functional.scaled_dot_product_attention(*split)
        else:
            head_size = split.shape[-1]
            query, key, value = split.reshape(3, num_texts * self.num_heads, length, head_size)
            zero = query.new_empty(1, 1, 1)  # beta=0: never read
            scores = torch.baddbmm(zero, query, key.transpose(1, 2), beta=0, alpha=head_size**-0.5)
            context_BATD = _softmax_product(scores, value).view(split.shape[1:])
        return context_BATD.transpose(1, 2).reshape(num_texts * length, -1)


def padding_id_of(model: Any) -> int | None:
    """The id of padding, on which positions depend in RoBERTa; None for BERT, where they do not."""
    return None if model.config.model_type == "bert" else int(model.embeddings.padding_idx)


def positions_of(input_ids: torch.Tensor, padding_id: int | None) -> torch.Tensor:
    """Like input_ids: from 0, or from padding_id + 1 over what is not padding (which a text can hold, too)."""
    if padding_id is None:
        return torch.arange(input_ids.shape[1]).expand_as(input_ids)
    is_word = input_ids != padding_id
    return is_word.cumsum(1) * is_word + padding_id


def _softmax_product(scores: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(scores) @ value, with the division last: torch's softmax is slow on rows of a few dozen numbers, and with
    plain exponentials attention takes 0.4 to 0.8 of its time (measured, 12 to 60 tokens in bfloat16).
    """
    lowest, highest = torch.aminmax(scores)
    if lowest < -SAFE_SCORE or highest > SAFE_SCORE:
        return torch.bmm(scores.softmax(-1), value)
    weights = scores.exp_()
    totals = weights.flatten(0, 1) @ weights.new_ones(weights.shape[-1], 1)
    return torch.bmm(weights, value).div_(totals.view(*weights.shape[:2], 1))


def _pack_layer(layer: Any, make: Callable[[torch.Tensor, torch.Tensor], Linear]) -> Layer:
    attention = layer.attention
    parts = (attention.self.query, attention.self.key, attention.self.value)
    return Layer(
        query_key_value=make(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])),
        output=make(attention.output.dense.weight, attention.output.dense.bias),
        output_norm=attention.output.LayerNorm,
        up=make(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
        down=make(layer.output.dense.weight, layer.output.dense.bias),
        down_norm=layer.output.LayerNorm,
    )


def linear_for(device: torch.device, batch_tokens: int) -> Callable[[torch.Tensor, torch.Tensor], Linear]:
    """What `PackedBert` makes its layers with. batch_tokens is a hint for the layout; any number of rows will do."""

    def one_dnn(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return OneDnnLinear(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), batch_tokens), bias.detach())

    def plain(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return PlainLinear(weight.detach(), bias.detach())

    return one_dnn if device.type == "cpu" else plain
