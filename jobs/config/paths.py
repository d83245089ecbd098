"""Relative paths of a configuration, made absolute: from the file's folder, in overrides from the working directory."""

import os
import re
from pathlib import Path
from typing import Any, get_args, get_origin

from jobs.config.fields import PathMark, fields_of, is_section, split

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
RELATIVE_URL = re.compile(r"file://(?=\.\.?(/|$))")
INTERPOLATION = "${"


def absolute_paths(values: Any, kind: type, folder: Path) -> Any:
    """`values` of the class `kind`, as they were read, with each field that is marked as a path taken from `folder`.

    What cannot be a path stays as it is, so that the check that follows can name it.
    """
    if not isinstance(values, dict):
        return values
    fields = {name: split(field) for name, field in fields_of(kind).items() if name in values}
    changed: dict[str, Any] = {}
    for name, (bare, added, _) in fields.items():
        mark = next((item for item in added if isinstance(item, PathMark)), None)
        if is_section(bare):
            changed[name] = absolute_paths(values[name], bare, folder)
        elif mark and isinstance(values[name], str):
            changed[name] = absolute_path(values[name], folder, mark)
        elif isinstance(values[name], list) and (mark := _mark_of_items(bare)):
            changed[name] = [
                absolute_path(value, folder, mark) if isinstance(value, str) else value for value in values[name]
            ]
    return {**values, **changed}


def _mark_of_items(kind: Any) -> PathMark | None:
    """The mark of the items of a list type."""
    added = split(get_args(kind)[0])[1] if get_origin(kind) is list else []
    return next((item for item in added if isinstance(item, PathMark)), None)


def absolute_path(value: str, folder: Path, mark: PathMark) -> str:
    """A URL, an absolute path, a name and what begins with an interpolation stay as they are."""
    if RELATIVE_URL.match(value):
        return f"file://{_join(folder, value.removeprefix('file://'))}"
    if not value.strip() or value.startswith(INTERPOLATION) or SCHEME.match(value) or os.path.isabs(value):
        return value
    if mark.or_name and not re.match(r"\.\.?(/|$)", value) and not (folder / value).is_dir():
        return value
    return _join(folder, value)


def _join(folder: Path, value: str) -> str:
    return os.path.normpath(folder.resolve() / value)
