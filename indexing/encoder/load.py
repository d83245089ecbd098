"""From a folder to an Encoder: tokenizer, transformer and head, each complete or refused."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

from indexing.encoder.backbone import PaddedBackbone
from indexing.encoder.device import default_batch_tokens, pick_device, pick_dtype
from indexing.encoder.encoder import Encoder, Tower
from indexing.encoder.head import Head
from indexing.encoder.layout import Layout, read_layout
from indexing.encoder.packed import SIZES, PackedForward, has_varlen
from indexing.encoder.probe import check_tokenizer, check_vocabulary, measure
from indexing.encoder.settings import EncoderSettings
from indexing.encoder.tokens import Tokens
from indexing.encoder.unpadded import PackedBert, can_pack, linear_for
from indexing.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Weights that no vector depends on: poolers and buffers, and the heads of checkpoints made for another task.
HARMLESS_MISSING = re.compile(r"(^|\.)(pooler\.|position_ids$)")
HARMLESS_UNEXPECTED = re.compile(r"(^|\.)(pooler\.|position_ids$)|^(cls|lm_head|vocab_\w+)\.")

ENCODER_DECODERS = ("t5", "mt5", "umt5")
"""Model types whose encoder is used without the decoder, as sentence-transformers does."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a tower is made of: text to tokens, tokens to token vectors, those to text vectors."""

    layout: Layout
    tokens: Tokens
    model: "PreTrainedModel"
    head: Head


def load_parts(layout: Layout, settings: EncoderSettings, dtype: torch.dtype, device: torch.device) -> Parts:
    """Raises ConfigError naming what is missing or unsupported."""
    with _quiet_transformers():
        config = _load_config(layout)
        tokenizer = _load_tokenizer(layout)
        model = _load_model(layout, config, dtype, device)
        check_vocabulary(tokenizer, model, layout.root / layout.transformer)
        measured = measure(model, tokenizer, layout.root / layout.transformer)
    head = Head(layout, measured.hidden_size, settings.dim).to(device).eval()
    tokens = Tokens(tokenizer, _max_tokens(layout, config, tokenizer, measured.num_positions, settings.max_tokens))
    return Parts(layout=layout, tokens=tokens, model=model, head=head)


def load(path: Path, settings: EncoderSettings, *, num_threads: int | None) -> Encoder:
    """See `indexing.encoder.load_encoder`."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    layout, device = read_layout(path), pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    document = _make_tower(load_parts(layout, settings, dtype, device), settings.batch_tokens)
    query = document
    if layout.query is not None:
        query = _make_tower(load_parts(layout.query, settings, dtype, device), settings.batch_tokens)
        if query.head.dim != document.head.dim:
            raise ConfigError(
                f"expected towers of one dim in {path}, got {query.head.dim} for queries, {document.head.dim} for items"
            )
    return Encoder(
        query=query,
        document=document,
        prompts=layout.prompts,
        batch_tokens=settings.batch_tokens or default_batch_tokens(device),
        num_threads=torch.get_num_threads(),
    )


def load_tokeniser(path: Path, settings: EncoderSettings) -> Callable[[Sequence[str]], pa.Table]:
    """See `indexing.encoder.load_tokeniser`. The model is loaded too: it says how long a text may be."""
    layout, device = read_layout(path), torch.device("cpu")
    tokens = load_parts(layout, settings, pick_dtype(settings.dtype, device), device).tokens
    return partial(tokens.tokenise, prompt=layout.prompts["document"])


def _make_tower(parts: Parts, batch_tokens: int | None) -> Tower:
    """batch_tokens: None is what suits the device."""
    device, packs = parts.model.device, can_pack(parts.model)
    if packs and device.type == "cuda":
        return packed_tower(parts, SIZES if batch_tokens is None else (batch_tokens,))
    most = batch_tokens or default_batch_tokens(device)
    return Tower(
        backbone=PackedBert(parts.model, linear_for(device, most)) if packs else PaddedBackbone(parts.model),
        head=parts.head,
        tokens=parts.tokens,
        include_prompt=parts.layout.include_prompt,
    )


def packed_tower(parts: Parts, sizes: Sequence[int]) -> Tower:
    """For GPUs, with as many of the sizes of batches as there is memory for."""
    device = parts.model.device
    bert = PackedBert(parts.model, linear_for(device, max(sizes)))
    fixed = has_varlen(device, parts.model.dtype)
    packed = PackedForward(bert, parts.head, parts.tokens.max_tokens, sizes, fixed=fixed)
    packed.probe()
    return Tower(
        backbone=bert,
        head=parts.head,
        tokens=parts.tokens,
        include_prompt=parts.layout.include_prompt,
        packed=packed,
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports: what they would say is checked here and raised."""
    quiet: Any = transformers.utils.logging
    verbosity, had_bar = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        yield
    finally:
        quiet.set_verbosity(verbosity)
        if had_bar:
            quiet.enable_progress_bar()


def _load_config(layout: Layout) -> Any:
    folder = layout.root / layout.transformer
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = first_line(error)
        raise ConfigError(f"expected an architecture that transformers knows in {folder}, got: {reason}") from error
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise ConfigError(f"expected a text encoder in {folder}, got model type {config.model_type}")
    _check_config(config, folder)
    return config


def _check_config(config: Any, folder: Path) -> None:
    """Refuse what transformers would ignore or cannot do alike in all batches; set what changes no vector."""
    positions = getattr(config, "position_embedding_type", "absolute")
    for key, refused in (
        ("quantization_config", getattr(config, "quantization_config", None) is not None),
        # transformers 5 reads it for the few architectures whose configuration has it, and ignores it for others
        ("position_embedding_type", positions != "absolute" and not hasattr(type(config), "position_embedding_type")),
        # BigBird turns it off for good at the first short batch
        ("attention_type", getattr(config, "attention_type", "original_full") != "original_full"),
    ):
        if refused:
            raise ConfigError(f"{folder}/config.json: {key} {getattr(config, key)} is not supported")
    config._attn_implementation = None
    config.return_dict = True
    for key, value in (
        ("use_cache", False),
        ("output_hidden_states", False),
        ("output_attentions", False),
        ("chunk_size_feed_forward", 0),  # saves memory, but fails for a length that it does not divide
    ):
        if hasattr(config, key):
            setattr(config, key, value)


def _load_tokenizer(layout: Layout) -> "PreTrainedTokenizerBase":
    folder = layout.root / layout.transformer
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as error:
        reason = first_line(error)
        raise ConfigError(f"expected a tokenizer that transformers can load in {folder}, got: {reason}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"expected a fast tokenizer (tokenizer.json) in {folder}, got {type(tokenizer).__name__}")
    check_tokenizer(tokenizer, folder)
    backend = tokenizer.backend_tokenizer
    if layout.do_lower_case and "Lowercase" not in repr(backend.normalizer):
        known = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *known])
    return tokenizer


def _load_model(layout: Layout, config: Any, dtype: torch.dtype, device: torch.device) -> "PreTrainedModel":
    """The transformer without any task head; all its weights come from the files."""
    folder = layout.root / layout.transformer
    has_decoder = config.model_type in ENCODER_DECODERS
    if getattr(config, "is_encoder_decoder", False) and not has_decoder:
        raise ConfigError(f"expected a text encoder in {folder}, got the encoder-decoder {config.model_type}")
    loader = AutoModelForTextEncoding if has_decoder else AutoModel
    try:
        model, report = loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below with their names
        )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        reason = first_line(error)
        raise ConfigError(f"expected a {config.model_type} text encoder in {folder}, got: {reason}") from error
    missing = [key for key in report["missing_keys"] if not HARMLESS_MISSING.search(key)]
    unexpected = [
        key
        for key in report["unexpected_keys"]
        if not HARMLESS_UNEXPECTED.search(key) and not (has_decoder and key.startswith("decoder."))
    ]
    wrong = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)):
        if keys:
            raise ConfigError(f"expected all weights of a {config.model_type} in {folder}, {kind}: {_some(keys)}")
    placed: PreTrainedModel = model.to(device=device).eval()
    return placed


def _some(keys: list[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _max_tokens(
    layout: Layout, config: Any, tokenizer: "PreTrainedTokenizerBase", num_positions: int | None, wanted: int
) -> int:
    """The model's limit where it is lower than the wanted one: as sentence-transformers finds it, and no more tokens
    than the model has positions for.
    """
    stated = getattr(config, "max_position_embeddings", None) or wanted
    limit = int(layout.max_tokens or min(tokenizer.model_max_length, stated if stated > 0 else wanted))
    limit = min(limit, num_positions or limit)
    least = tokenizer.num_special_tokens_to_add() + 1
    if min(wanted, limit) < least:
        name = "encoder.max_tokens" if wanted < limit else f"{layout.root / layout.transformer}: max_seq_length"
        raise ConfigError(f"{name}: expected at least {least} for this tokenizer, got {min(wanted, limit)}")
    if limit < wanted:
        log.warning("encoder.max_tokens: %d exceeds the model's own limit, using %d", wanted, limit)
    return min(wanted, limit)
