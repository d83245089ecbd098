"""Every setting of a sentence-transformers folder: honoured, without effect on a vector, or refused by name.

docs/models.md has the table. A setting that is not known here is refused, since it might change vectors.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexing.errors import ConfigError

# Ways to load the weights that do not change what the model computes; encoder.dtype and encoder.device decide.
HARMLESS_ARGUMENTS = {"torch_dtype", "dtype", "attn_implementation", "trust_remote_code"}
ARGUMENTS = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs")
SIMILARITIES = (None, "cosine", "dot")
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The old key of each pooling mode → its name, in the order in which several are concatenated."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What may be in one JSON file."""

    known: frozenset[str]
    """Honoured by the code that reads the file, or without effect on a vector."""
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Setting → the values that are supported; None stands for empty too."""


ON_VECTORS = {"module_input_name": ("sentence_embedding",), "module_output_name": (None, "sentence_embedding")}
MODEL = Rules(
    known=frozenset(
        {
            *("prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name"),
            *("model_type", "requirements", "__version__"),
        }
    )
)
TRANSFORMER = Rules(
    known=frozenset(("max_seq_length", "do_lower_case", "unpad_inputs", "modality_config", *ARGUMENTS)),
    only={"transformer_task": ("feature-extraction",), "module_output_name": ("token_embeddings",)}
    | dict.fromkeys(("query_expansion", "query_length", "document_length"), (None,))
    | dict.fromkeys(("processing_kwargs", "tokenizer_name_or_path"), (None,)),
)
POOLING = Rules(
    known=frozenset(
        ("pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension", *LEGACY_POOLING)
    )
)
DENSE = Rules(
    known=frozenset(("in_features", "out_features", "bias", "activation_function")),
    only=ON_VECTORS | {"use_residual": (False,)},
)
NORMALIZE = Rules(known=frozenset(), only=ON_VECTORS)
ROUTER = Rules(known=frozenset(("default_route", "allow_empty_key")), only={"route_mappings": (None,)})


def check(path: Path, settings: dict[str, Any], rules: Rules) -> None:
    """Raises ConfigError naming the first setting, in the order of names, that is not known or not supported."""
    for key, value in sorted(settings.items()):
        if key in rules.known:
            continue
        if key not in rules.only:
            raise ConfigError(f"{path}: expected known settings, got {key}; remove it if vectors do not depend on it")
        accepted = rules.only[key]
        if value in accepted or (None in accepted and not value):
            continue
        if accepted == (None,):
            raise ConfigError(f"{path}: expected a plain text encoder, got {key}, which is not supported")
        raise ConfigError(f"{path}: expected {key} {accepted[-1]}, got {value}")


def check_transformer(path: Path, settings: dict[str, Any]) -> None:
    """The settings of the Transformer module. Raises ConfigError naming the one that is not supported."""
    check(path, settings, TRANSFORMER)
    for key in ARGUMENTS:
        unknown = set(settings.get(key) or {}) - HARMLESS_ARGUMENTS
        if unknown:
            raise ConfigError(f"{path}: expected no {key} that change the model, got {', '.join(sorted(unknown))}")
    modality = settings.get("modality_config", TEXT_ONLY)
    if "message" in modality:
        raise ConfigError(f"{path}: expected texts as input, got modality_config with a chat template (message)")
    if modality != TEXT_ONLY:
        raise ConfigError(f"{path}: expected modality_config {TEXT_ONLY}, got {modality}")
    read_number(path, settings, "max_seq_length")


def read_number(path: Path, settings: dict[str, Any], key: str) -> int | None:
    """A whole number above 0, or None where there is none. Raises ConfigError."""
    value = settings.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigError(f"{path}: expected {key} to be a whole number above 0, got {value!r}")
    return value


def check_similarity(path: Path, name: Any, *, ends_normalised: bool) -> str:
    """Vectors are compared by cosine, which equals the dot product only where the model itself normalises them.

    Returns cosine or dot. Raises ConfigError for every other way to compare.
    """
    if name not in SIMILARITIES:
        raise ConfigError(f"{path}: expected similarity_fn_name cosine, got {name}, which no release supports")
    if name == "dot" and not ends_normalised:
        raise ConfigError(
            f"{path}: expected similarity_fn_name cosine, got dot; without Normalize as the last module the lengths "
            "of its vectors matter, and a release does not keep them"
        )
    return name or "cosine"
