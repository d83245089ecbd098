"""What a sentence-transformers folder says: its modules, prompts and limits, read as plain JSON.

Both the old (2.x) and the new (6.x) formats are understood. Whatever would change the vectors and is not
implemented here is refused by name; nothing is guessed. Format: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from indexing.encoder import rules
from indexing.errors import ConfigError

POOLING_MODES = tuple(rules.LEGACY_POOLING.values())
# Classes from elsewhere are code that comes with the folder, whatever their name; it is never run.
MODULE_PACKAGES = (
    "sentence_transformers.models",
    "sentence_transformers.base",
    "sentence_transformers.sentence_transformer",
)
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ROUTER_CONFIG = "router_config.json"
MODEL_CONFIG = "config_sentence_transformers.json"


@dataclass(frozen=True, kw_only=True)
class DenseLayout:
    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """Name of the class in torch.nn, such as Tanh or Identity."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    root: Path
    modules: tuple[tuple[str, str], ...]
    """Class name and folder of each module, in order; a plain transformers folder has only one."""
    transformer: str
    """Folder of the transformer, relative to root; '' is root itself."""
    pooling: tuple[str, ...]
    """Of POOLING_MODES; the vectors of several are concatenated."""
    include_prompt: bool
    """False: the prompt's tokens are read by the model but left out of the pooling."""
    head: tuple[DenseLayout | None, ...]
    """What follows the pooling, in order; None stands for Normalize."""
    prompts: dict[str, str]
    """Resolved for 'query' and 'document'; '' where there is none."""
    max_tokens: int | None
    do_lower_case: bool
    truncate_dim: int | None
    similarity: str
    """cosine, or dot, which is the same as long as no dimension is cut off."""
    files: tuple[str, ...]
    """Relative POSIX names of all files that make up the encoder, sorted."""
    query: "Layout | None" = None
    """The tower for queries where it is a separate one (sentence-transformers' Router); this one is for documents."""


def read_layout(root: Path) -> Layout:
    """Read the folder's JSON. Raises ConfigError naming what is missing, unknown or unsafe."""
    if not root.is_dir():
        raise ConfigError(
            f"expected a model folder, got {root}, which {'is a file' if root.exists() else 'is missing'}"
        )
    try:
        return _read_layout(root)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"expected the JSON of sentence-transformers in {root}, got {error!r} reading it") from error


def _read_layout(root: Path) -> Layout:
    model_config = _read_json(root / MODEL_CONFIG, missing={})
    rules.check(root / MODEL_CONFIG, model_config, rules.MODEL)
    if model_config.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ConfigError(f"expected a dense model in {root}, got model_type {model_config['model_type']!r}")
    routes = _read_routes(root)
    if routes is None:
        return _read_tower(root, _read_modules(root), model_config)
    query, document = (_read_tower(root, routes[kind], model_config) for kind in ("query", "document"))
    return replace(document, query=query, files=tuple(sorted({*query.files, *document.files, ROUTER_CONFIG})))


def _read_tower(root: Path, modules: list[tuple[str, str]], model_config: dict[str, Any]) -> Layout:
    transformer = modules[0][1]
    settings = _read_transformer_settings(root / transformer, is_plain=len(modules) == 1)
    pooling = _read_pooling(root, modules[1][1]) if len(modules) > 1 else _default_pooling(root)
    files = {name for name in ("modules.json", MODEL_CONFIG) if (root / name).is_file()}
    head = tuple(_read_head(root, kind, folder) for kind, folder in modules[2:])
    files.update(_join(transformer, name) for name in _transformer_files(root / transformer))
    for kind, folder in modules[1:]:
        files.update(_join(folder, name) for name in _head_files(root / folder, kind))
    return Layout(
        root=root,
        modules=tuple(modules),
        transformer=transformer,
        pooling=pooling[0],
        include_prompt=pooling[1],
        head=head,
        prompts=_resolve_prompts(model_config),
        max_tokens=settings.get("max_seq_length"),
        do_lower_case=bool(settings.get("do_lower_case", False)),
        truncate_dim=rules.read_number(root / MODEL_CONFIG, model_config, "truncate_dim"),
        similarity=rules.check_similarity(
            root / MODEL_CONFIG,
            model_config.get("similarity_fn_name"),
            ends_normalised=bool(head) and head[-1] is None,
        ),
        files=tuple(sorted(files)),
    )


def _read_json(path: Path, *, missing: Any = None) -> Any:
    """The parsed file, or `missing` where there is none and a default was given."""
    if not path.is_file():
        if missing is None:
            raise ConfigError(f"expected the model file {path}, but it is missing")
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"expected JSON in {path}, got {error}") from error


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _inside(name: str, source: Path) -> str:
    """A model file must not point outside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ConfigError(f"expected a path inside the model in {source}, got {name!r}")
    return "" if str(path) == "." else str(path)


def _read_modules(root: Path) -> list[tuple[str, str]]:
    """(class name, folder) of every module: Transformer, Pooling, then any of Dense and Normalize."""
    path = root / "modules.json"
    if not path.is_file():
        return [("Transformer", "")]
    return _check_modules(
        [(_class_name(entry["type"]), _inside(entry["path"], path)) for entry in _read_json(path)], path
    )


def _read_routes(root: Path) -> dict[str, list[tuple[str, str]]] | None:
    """The modules for queries and those for documents, where modules.json is a Router and nothing else."""
    path = root / "modules.json"
    entries = _read_json(path) if path.is_file() else []
    if "Router" not in (_class_name(entry["type"]) for entry in entries):
        return None
    config = _read_json(root / ROUTER_CONFIG)
    rules.check(root / ROUTER_CONFIG, config.get("parameters", {}), rules.ROUTER)
    structure = config["structure"]
    if len(entries) != 1 or entries[0]["path"] or not {"query", "document"} <= structure.keys():
        raise ConfigError(f"{path}: expected a Router for query and document only, got {sorted(structure)}")
    kinds = {name: _class_name(kind) for name, kind in config["types"].items()}
    return {
        route: _check_modules([(kinds[name], _inside(name, root / ROUTER_CONFIG)) for name in structure[route]], path)
        for route in ("query", "document")
    }


def _class_name(path: str) -> str:
    """The name of a class of sentence-transformers itself; of any other class its whole path, which nothing matches."""
    return path.rsplit(".", 1)[-1] if path.startswith(tuple(f"{place}." for place in MODULE_PACKAGES)) else path


def _check_modules(modules: list[tuple[str, str]], path: Path) -> list[tuple[str, str]]:
    kinds = [kind for kind, _ in modules]
    for position, kind in enumerate(kinds):
        allowed = {0: ("Transformer",), 1: ("Pooling",)}.get(position, ("Dense", "Normalize"))
        if kind not in allowed:
            raise ConfigError(f"{path}: expected module {position} to be {' or '.join(allowed)}, got {kind}")
    if len(kinds) < 2:
        raise ConfigError(f"{path}: expected a Transformer and a Pooling module, got {kinds}")
    return modules


def _read_transformer_settings(folder: Path, *, is_plain: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in () if is_plain else TRANSFORMER_CONFIGS:
        settings = _read_json(folder / name, missing={})
        if settings:
            rules.check_transformer(folder / name, settings)
            break
    if is_plain and _has_chat_template(folder):
        raise ConfigError(f"{folder}: expected texts as input, got a model that wraps them in a chat template")
    return settings


def _has_chat_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or bool(
        _read_json(folder / "tokenizer_config.json", missing={}).get("chat_template")
    )


def _default_pooling(root: Path) -> tuple[tuple[str, ...], bool]:
    """Without modules.json sentence-transformers takes the mean, or the last token of a causal language model."""
    config = _read_json(root / "config.json")
    is_causal = (config.get("architectures") or [""])[0].endswith("ForCausalLM") and config.get("is_causal", True)
    return (("lasttoken" if is_causal else "mean"),), True


def _read_pooling(root: Path, folder: str) -> tuple[tuple[str, ...], bool]:
    path = root / folder / "config.json"
    config = _read_json(path)
    rules.check(path, config, rules.POOLING)
    legacy = [mode for key, mode in rules.LEGACY_POOLING.items() if config.get(key)]
    modes = config.get("pooling_mode") or legacy or "mean"
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [str(mode) for mode in modes if mode not in POOLING_MODES]
    if unknown:
        raise ConfigError(f"{path}: expected pooling modes among {', '.join(POOLING_MODES)}, got {', '.join(unknown)}")
    return modes, bool(config.get("include_prompt", True))


def _read_head(root: Path, kind: str, folder: str) -> DenseLayout | None:
    path = root / folder / "config.json"
    if kind == "Normalize":
        rules.check(path, _read_json(path, missing={}), rules.NORMALIZE)
        return None
    config = _read_json(path)
    rules.check(path, config, rules.DENSE)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not activation.startswith("torch.nn."):
        raise ConfigError(f"{path}: expected an activation from torch.nn, got {activation}")
    return DenseLayout(
        folder=folder,
        in_features=config["in_features"],
        out_features=config["out_features"],
        bias=config.get("bias", True),
        activation=activation.rsplit(".", 1)[-1],
    )


def _resolve_prompts(config: dict[str, Any]) -> dict[str, str]:
    """As `encode_query` and `encode_document` of sentence-transformers 6 choose: 'query' and 'document' always
    exist, so neither other names (passage, corpus) nor the default prompt are ever used."""
    saved = config.get("prompts") or {}
    return {kind: saved.get(kind) or "" for kind in ("query", "document")}


def _transformer_files(folder: Path) -> list[str]:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"expected the model file {folder / 'config.json'}, but it is missing")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"expected whole weights in {folder}, got adapter_config.json; merge the adapter into the model"
        )
    names = ["config.json", *_weight_files(folder)]
    tokenizer = next((names for names in TOKENIZERS if all((folder / name).is_file() for name in names)), None)
    if tokenizer is None:
        raise ConfigError(f"expected a tokenizer (tokenizer.json, vocab.txt or vocab.json) in {folder}, got none")
    optional = (*TOKENIZER_EXTRAS, *TRANSFORMER_CONFIGS)
    return names + list(tokenizer) + [name for name in optional if (folder / name).is_file()]


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        index = _read_json(folder / WEIGHTS_INDEX)
        return [WEIGHTS_INDEX, *sorted({_inside(name, folder) for name in index["weight_map"].values()})]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    found = f"only {', '.join(pickles)}, a pickle, which could run code" if pickles else "none"
    raise ConfigError(f"expected weights as {WEIGHTS} in {folder}, got {found}")


def _head_files(folder: Path, kind: str) -> list[str]:
    if kind == "Normalize":
        return ["config.json"] if (folder / "config.json").is_file() else []
    return ["config.json", *(_weight_files(folder) if kind == "Dense" else [])]
