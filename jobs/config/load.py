"""From a YAML file and `key=value` to a configuration: OmegaConf reads and resolves, pydantic checks the values."""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from indexing.errors import ConfigError
from jobs.config.apart import require_apart
from jobs.config.errors import explain_interpolation, explain_reading, explain_values, explain_yaml, show
from jobs.config.fields import defaults_of
from jobs.config.paths import absolute_paths
from jobs.config.schema import SHORT_FORMS, Config


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of the YAML file at `path`; each `key=value` overrides a value in the file.

    Paths in the file are relative to its folder, those of overrides to the working directory; both come back absolute.
    Raises ConfigError, in one line.
    """
    if not Path(path).is_file():
        raise ConfigError(f"configuration {path} does not exist; configs/ has examples")
    folder = Path(path).parent
    try:
        layers = [_prepare(_read_file(path), folder), *(_prepare(_read_override(text), Path()) for text in overrides)]
        values = _resolve(reduce(_merge, layers, defaults_of(Config)))
        config = _validate(absolute_paths(values, Config, folder))
        require_apart(config)
        return config
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, as `--dry-run` prints it."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _read_file(path: str) -> Any:
    try:
        return OmegaConf.load(path)
    except YAMLError as error:
        raise ConfigError(explain_yaml(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected text in UTF-8, got the byte {error.object[error.start]:#x}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain_reading(error)) from error
    except OSError as error:  # of the file system, or of OmegaConf for a file that is one number
        reason = error.strerror or "expected keys and their values, got a single value"
        raise ConfigError(reason) from error


def _read_override(text: str) -> Any:
    if "=" not in text:
        raise ConfigError(f"{text}: expected key=value on the command line, got no value")
    try:
        return OmegaConf.from_dotlist([text])
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        key, _, value = text.partition("=")
        raise ConfigError(f"{key}: expected a YAML value, got {show(value)}") from error


def _prepare(given: Any, folder: Path) -> dict[str, Any]:
    """One layer before they are merged: short forms written out, paths absolute."""
    if not isinstance(given, DictConfig):
        raise ConfigError("expected keys and their values, got a list")
    values: Any = OmegaConf.to_container(given, resolve=False)
    for name, key in SHORT_FORMS.items():
        if isinstance(values.get(name), str):
            values[name] = {key: values[name]}
    absolute: dict[str, Any] = absolute_paths(values, Config, folder)
    return absolute


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; two mappings are merged key by key. OmegaConf's own merge does not name a key that it refuses."""
    both = {
        key: _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def _resolve(values: dict[str, Any]) -> Any:
    merged = OmegaConf.create(values)
    try:
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"expected a value for {error.full_key}, got none") from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain_interpolation(error)) from error


def _validate(values: Any) -> Config:
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain_values(Config, error)) from error
