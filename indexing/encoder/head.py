"""Token vectors to text vectors: pooling, Dense layers, truncation, unit norm. Always in float32.

Shape letters: B texts, T tokens, H hidden size, D output dimension.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from indexing.encoder.layout import WEIGHTS, DenseLayout, Layout
from indexing.errors import ConfigError

ACTIVATIONS = {
    kind.__name__: kind
    for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus)
}


class Head(nn.Module):
    """What follows the transformer. Raises ConfigError when built from Dense layers or a dim that do not fit."""

    def __init__(self, layout: Layout, hidden_size: int, dim: int | None) -> None:
        super().__init__()
        self.pooling = layout.pooling
        self.steps = nn.ModuleList()
        full_dim = hidden_size * len(layout.pooling)
        for dense in layout.head:
            self.steps.append(_Normalize() if dense is None else _load_dense(layout.root, dense, full_dim))
            full_dim = full_dim if dense is None else dense.out_features
        self.dim = dim or layout.truncate_dim or full_dim
        if self.dim > full_dim:
            name = "encoder.dim" if dim else f"{layout.root}: truncate_dim"
            raise ConfigError(f"{name}: expected at most {full_dim}, the model's own, got {self.dim}")
        if layout.similarity == "dot" and self.dim < full_dim:
            raise ConfigError(
                f"{layout.root}: expected similarity_fn_name cosine with {self.dim} of {full_dim} dimensions, got dot"
            )

    def forward(self, hidden_BTH: torch.Tensor, lengths_B: torch.Tensor, num_prompt_tokens: int) -> torch.Tensor:
        """float32 (B, D), unit norm. Texts are padded on the right; the first num_prompt_tokens are left out."""
        vectors = self.pool(hidden_BTH, lengths_B, num_prompt_tokens)
        for step in self.steps:
            vectors = step(vectors)
        return nn.functional.normalize(vectors[:, : self.dim], dim=-1)

    def packed(
        self, hidden_NH: torch.Tensor, columns_N: torch.Tensor, first_N: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        """The same of texts one after another: offsets is int32 (B + 1,), columns_N counts from 0 in each text, and
        tokens before the column first_N are left out. Each text is summed in order, so the bits do not vary.
        """
        parts = [_pool_packed(mode, hidden_NH.float(), columns_N, first_N, offsets.long()) for mode in self.pooling]
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for step in self.steps:
            vectors = step(vectors)
        return nn.functional.normalize(vectors[:, : self.dim], dim=-1)

    def pool(self, hidden_BTH: torch.Tensor, lengths_B: torch.Tensor, num_prompt_tokens: int) -> torch.Tensor:
        """float32 (B, H), or as many times H as there are pooling modes."""
        # A text cut down to its prompt, or to less, is pooled over all its tokens rather than over none.
        first_B = torch.where(lengths_B > num_prompt_tokens, num_prompt_tokens, 0)
        parts = [_pool(mode, hidden_BTH, first_B, lengths_B) for mode in self.pooling]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _pool(mode: str, hidden_BTH: torch.Tensor, first_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """float32 (B, H), of each text's tokens from first_B to lengths_B."""
    if mode in ("cls", "lasttoken"):
        token_B = first_B if mode == "cls" else lengths_B - 1
        return hidden_BTH[torch.arange(len(token_B), device=token_B.device), token_B].float()
    positions_T = torch.arange(hidden_BTH.shape[1], device=lengths_B.device)
    inside_BT = (positions_T < lengths_B[:, None]) & (positions_T >= first_B[:, None])
    if mode == "max":
        return hidden_BTH.masked_fill(~inside_BT[:, :, None], -torch.inf).amax(1).float()
    if mode == "weightedmean":  # later tokens of a causal model have seen more: weights 1, 2, 3 …
        weights_BT = inside_BT * (positions_T + 1.0)
        return (hidden_BTH * weights_BT[:, :, None]).sum(1) / weights_BT.sum(1)[:, None]
    total_BH = (hidden_BTH * inside_BT[:, :, None]).sum(1, dtype=torch.float32)
    counts_B = lengths_B - first_B
    return total_BH / (counts_B.sqrt() if mode == "mean_sqrt_len_tokens" else counts_B)[:, None]


def _pool_packed(
    mode: str, hidden_NH: torch.Tensor, columns_N: torch.Tensor, first_N: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """float32 (B, H); undefined for a text without tokens."""
    if mode in ("cls", "lasttoken"):
        last_B = (offsets[1:] - 1).clamp_min(0)
        token_B = last_B - columns_N[last_B] + first_N[last_B] if mode == "cls" else last_B
        return hidden_NH[token_B]
    inside_N1 = (columns_N >= first_N)[:, None]

    def segments(rows: torch.Tensor, reduce: str) -> torch.Tensor:
        return torch.segment_reduce(rows, reduce, offsets=offsets, axis=0, unsafe=True)  # unsafe: without waiting

    if mode == "max":
        return segments(hidden_NH.masked_fill(~inside_N1, -torch.inf), "max")
    weights_N1 = inside_N1 * (columns_N[:, None] + 1.0 if mode == "weightedmean" else 1.0)
    total_BH, counts_B1 = segments(hidden_NH * weights_N1, "sum"), segments(weights_N1, "sum")
    return total_BH / (counts_B1.sqrt() if mode == "mean_sqrt_len_tokens" else counts_B1)


class _Normalize(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, dim=-1)


def _load_dense(root: Path, dense: DenseLayout, num_inputs: int) -> nn.Module:
    folder = root / dense.folder
    if dense.in_features != num_inputs:
        raise ConfigError(f"{folder}: expected {num_inputs} inputs, got {dense.in_features}")
    if dense.activation not in ACTIVATIONS:
        raise ConfigError(f"{folder}: expected one of the activations {', '.join(ACTIVATIONS)}, got {dense.activation}")
    linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
    try:
        weights = load_file(folder / WEIGHTS)
        linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in weights.items()})
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder}/{WEIGHTS}: expected the weights of its config.json, got {reason}") from error
    return nn.Sequential(linear, ACTIVATIONS[dense.activation]())
