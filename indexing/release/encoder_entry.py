"""The encoder's part of a release file."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from indexing.release.codec import check_distinct, refuse
from indexing.store.blobs import SHA256, Blob


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    path: str
    """Relative POSIX path inside the encoder's folder."""
    blob: Blob


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """The encoder that made the vectors; its files travel with the release."""

    digest: str
    dim: int
    max_tokens: int
    dtype: str
    """As configured: auto, float32 or bfloat16."""
    prompts: dict[str, str]
    """Text put before an input, by kind: "query", "document"."""
    files: tuple[EncoderFile, ...]
    resolved_dtype: str | None = None
    """What `dtype` was where the release was validated; None in older releases, which lack the field."""


def check_encoder(encoder: EncoderEntry, dim: int) -> None:
    """DamagedError, one line naming the field, for an entry that no release of this `dim` may have."""
    if not SHA256.fullmatch(encoder.digest):
        refuse("encoder.digest", "64 hex digits", encoder.digest)
    if encoder.dim != dim:
        refuse("encoder.dim", f"{dim}, as the release", encoder.dim)
    if encoder.resolved_dtype not in (None, "float32", "bfloat16"):
        refuse("encoder.resolved_dtype", "float32 or bfloat16", encoder.resolved_dtype)
    if encoder.max_tokens < 1:
        refuse("encoder.max_tokens", "1 or more", encoder.max_tokens)
    if not encoder.files:
        refuse("encoder.files", "at least one", encoder.files)
    for position, file in enumerate(encoder.files):
        parts = file.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or not file.path.isprintable() or set(file.path) & set("\\:"):
            refuse(f"encoder.files[{position}].path", "a plain relative path", file.path)
    paths = [file.path for file in encoder.files]
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    if both := folders.intersection(paths):
        refuse("encoder.files", "files whose paths are no folders of others", min(both))
    check_distinct(paths, "encoder.files")
