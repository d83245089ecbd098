"""The encoder of a release, held open from when the release was opened until a text needs it."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from indexing.encoder import EncoderSettings, load_encoder, require_text
from indexing.encoder.settings import Dtype
from indexing.release.encoder_entry import EncoderEntry
from indexing.store import Store
from indexing.store.blobs import Fetch
from indexing.store.cache import BlobCache, retry_vanished

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder

OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class HeldEncoder:
    """Its files stay readable through `files` even after the cache and the store have deleted them."""

    entry: EncoderEntry
    device: str
    files: tuple[BinaryIO, ...]
    """In the order of `entry.files`; they are closed with the last reference to this."""

    def load(self) -> "Encoder":
        """In the number format that the release was validated in, where that is known.

        Raises ConfigError where this installation cannot encode text, or this machine has no such `device`.
        """
        entry = self.entry
        with tempfile.TemporaryDirectory(prefix="encoder-") as folder:
            for file, held in zip(entry.files, self.files, strict=True):
                target = Path(folder, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(OPEN_FILES / str(held.fileno()))
            return load_encoder(
                Path(folder),
                EncoderSettings(
                    model=folder,
                    device=self.device,
                    dtype=cast(Dtype, entry.resolved_dtype or entry.dtype),  # which EncoderSettings checks
                    max_tokens=entry.max_tokens,
                    dim=entry.dim,
                ),
            )


def hold_encoder(fetch: Fetch, entry: EncoderEntry, device: str = "auto") -> HeldEncoder:
    """Opens the encoder's verified files. Raises ConfigError where this installation cannot encode text."""
    require_text()  # before its files are fetched
    return HeldEncoder(entry, device, tuple(fetch(file.blob).open("rb") for file in entry.files))


def load_release_encoder(store: Store, cache: BlobCache, entry: EncoderEntry) -> "Encoder":
    """The encoder of a release, loaded immediately."""
    return retry_vanished(lambda: hold_encoder(partial(cache.fetch, store), entry)).load()
