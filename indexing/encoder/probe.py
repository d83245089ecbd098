"""What no configuration says reliably, found by running a few tokens through the model once it is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from indexing.encoder.backbone import PaddedBackbone
from indexing.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = ("", "The night, and its music: told again in [two] <parts>!", "Éß 日本 🎧")
NUM_TOKENS = 8
TOKENIZER_OUTPUTS = {"input_ids", "attention_mask", "token_type_ids"}
# Between a token's vector alone and in a batch. Rounding stays above it; ConvBERT attends to padding and has 0.9989.
MIN_COSINE = {torch.float32: 0.9999, torch.float16: 0.999, torch.bfloat16: 0.995}


@dataclass(frozen=True, kw_only=True)
class Measured:
    hidden_size: int
    num_positions: int | None
    """Tokens for which the model has learned positions; None where it needs none, or where none were seen."""


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Raises ConfigError where the tokenizer does more than its fast backend, or returns more than token ids."""
    if tokenizer.truncation_side != "right":
        raise ConfigError(f"{folder}: expected truncation_side right, got {tokenizer.truncation_side}")
    for text in TEXTS:
        found = tokenizer(text)
        unknown = set(found) - TOKENIZER_OUTPUTS
        if unknown or any(found.get("token_type_ids", [])):
            names = ", ".join(sorted(unknown)) or "other token types than 0"
            raise ConfigError(f"{folder}: expected a tokenizer that gives token ids alone, got {names}")
        if found["input_ids"] != tokenizer.backend_tokenizer.encode(text).ids:
            raise ConfigError(
                f"{folder}: expected what tokenizer.json does, got a {type(tokenizer).__name__} that does more"
            )


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", folder: Path) -> None:
    """Raises ConfigError where a text can have a token for which the model has no embedding."""
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    try:
        embeddings: Any = model.get_input_embeddings()
    except NotImplementedError as error:
        raise ConfigError(
            f"{folder}: expected token embeddings, got a {model.config.model_type} without them"
        ) from error
    rows = embeddings.weight.shape[0]
    if num_tokens > rows:
        raise ConfigError(
            f"{folder}: expected a tokenizer of at most {rows} tokens, which is how many embeddings the model has, "
            f"got {num_tokens}"
        )


@torch.no_grad()
def measure(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> Measured:
    """Run a text of a few tokens alone, and padded in a batch.

    Raises ConfigError where the model cannot read it, or where a vector depends on the other texts of its batch: it
    would differ the next night.
    """
    ids = tokenizer.backend_tokenizer.encode(" ".join(TEXTS)).ids[:NUM_TOKENS]
    length, half = len(ids), (len(ids) + 1) // 2
    # RoBERTa counts no position for padding, and in some models a word of the probe has the id of padding.
    padding = {getattr(module, "padding_idx", None) for module in model.modules()}
    word = next((token for token in ids if token not in padding), ids[0])
    batch = torch.tensor([[word] * length, ids[:half] + [tokenizer.pad_token_id or 0] * (length - half)])
    backbone = PaddedBackbone(model)
    try:
        with _indices(model) as seen:
            together = backbone(batch, torch.tensor([length, half]))
        alone = backbone(batch[1:, :half], torch.tensor([half]))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{folder}: expected a text encoder, got a {model.config.model_type} that cannot read text: {reason}"
        ) from error
    cosines = nn.functional.cosine_similarity(alone[0, :half].float(), together[1, :half].float(), dim=-1)
    if (cosines < MIN_COSINE[model.dtype]).any():
        raise ConfigError(
            f"{folder}: expected vectors that do not depend on the other texts of a batch, "
            f"got a {model.config.model_type}, which attends to padding"
        )
    learned = [_num_positions(table.weight.shape[0], indices, length) for table, indices in seen.items()]
    return Measured(
        hidden_size=alone.shape[-1], num_positions=min((number for number in learned if number), default=None)
    )


@contextmanager
def _indices(model: "PreTrainedModel") -> Iterator[dict[Any, torch.Tensor]]:
    """Each embedding table of the model → the int64 indices that were last looked up in it."""
    seen: dict[Any, torch.Tensor] = {}

    def remember(table: Any, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], torch.Tensor):
            seen[table] = arguments[0]

    # By name: I-BERT's quantised table is not an nn.Embedding.
    tables = [module for module in model.modules() if type(module).__name__.endswith("Embedding")]
    hooks = [
        table.register_forward_pre_hook(remember)
        for table in tables
        if isinstance(getattr(table, "weight", None), torch.Tensor)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _num_positions(rows: int, indices: torch.Tensor, length: int) -> int | None:
    """Longest text that a table of positions serves: its indices are first, first + 1, first + 2 …, and those of
    RoBERTa and its relatives do not begin at 0. None for other tables.
    """
    if indices.ndim not in (1, 2) or indices.shape[-1] < length or length < 2:
        return None
    row = indices.reshape(-1, indices.shape[-1])[0, :length]
    return rows - int(row[0]) if bool((row.diff() == 1).all()) else None
