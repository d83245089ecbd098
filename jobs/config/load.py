"""From a YAML file and `key=value` to a configuration. OmegaConf merges them into frozen objects."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from indexing.errors import ConfigError
from jobs.config.schema import CollectionConfig, Config


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file at `path` with `key=value` laid over it. Raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"configuration {path} does not exist; configs/ has examples")
    try:
        given = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]
        for values in given:
            if isinstance(values, DictConfig) and isinstance(values.get("encoder"), str):
                values["encoder"] = {"model": values["encoder"]}  # encoder: latest, for short
        merged = OmegaConf.merge(OmegaConf.structured(Config), *given)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise ConfigError(f"{path}: {_unknown_key(str(error.full_key))}") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{path}: expected a value for {error.full_key}, got none") from error
    except (OmegaConfBaseException, OSError, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{path}: {f'{key}: ' if key else ''}{reason}") from error
    except Exception as error:  # yaml's scanner errors have no public base in omegaconf
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    assert isinstance(config, Config)
    return config


def _unknown_key(key: str) -> str:
    *sections, name = key.split(".")
    kind: Any = Config
    for section in sections:
        # The only keys that are no fields are the names of collections.
        kind = {item.name: item.type for item in dataclasses.fields(kind)}.get(section, CollectionConfig)
        kind = kind if dataclasses.is_dataclass(kind) else CollectionConfig
    known = [item.name for item in dataclasses.fields(kind)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {key}; {hint}"


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, as `--dry-run` prints it."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
