"""A store that cannot be used says so in one line: which one, what is wrong, what to do. No secret is in it."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from support.seaweedfs import SeaweedFS

from indexing.errors import ConfigError, DataError, NightcrateError, StoreUnavailable
from indexing.store import PendingUpload, S3Settings, Store, open_store, preflight
from indexing.store.s3 import S3Store

CANARY = "canary-key-d41d8cd98f"

USES: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a"),
    "get_range": lambda store: store.get_range("a", 0, 1),
    "open": lambda store: store.open("a"),
    "put": lambda store: store.put("a", b"1"),
    "create": lambda store: store.create("a", b"1"),
    "head": lambda store: store.head("a"),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete("a"),
    "now": lambda store: store.now(),
    "list_uploads": lambda store: store.list_uploads(),
    "abort_upload": lambda store: store.abort_upload(PendingUpload(key="a", upload_id="0_0", started=0.0)),
    "preflight": preflight,
}
uses = pytest.mark.parametrize("use", USES.values(), ids=USES)


@contextmanager
def one_line(kind: type[NightcrateError], *parts: str) -> Iterator[None]:
    """The block must raise `kind` with one line that has all `parts`, starts in lower case, and reveals no secret."""
    with pytest.raises(NightcrateError) as caught:
        yield
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert all(part in text for part in parts), text
    assert "\n" not in text
    assert text[0] == text[0].lower()
    for secret in (CANARY, SeaweedFS.access_key, SeaweedFS.secret_key):
        assert secret not in text


@uses
def test_missing_bucket(s3_environment: dict[str, str], use: Callable[[Store], object]) -> None:
    with one_line(StoreUnavailable, "no such bucket", "s3://no-such-bucket/prefix"):
        use(open_store("s3://no-such-bucket/prefix"))


def test_missing_bucket_shows_in_downloads_and_uploads(s3_environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1" * 100)
    store = S3Store("s3://no-such-bucket", S3Settings(), multipart_bytes=10)
    with one_line(StoreUnavailable, "no such bucket"):
        store.download("a", tmp_path / "g")
    with one_line(StoreUnavailable, "no such bucket"):
        store.upload("a", path, "0" * 64)


@uses
def test_wrong_secret(s3_store_url: str, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    with one_line(StoreUnavailable, "denied", s3_store_url, "check the AWS credentials"):
        use(open_store(s3_store_url))


def test_unknown_access_key(s3_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY)
    with one_line(StoreUnavailable, "denied (InvalidAccessKeyId)", s3_store_url):
        open_store(s3_store_url).get("a")


@uses
def test_no_credentials(s3_store_url: str, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object]) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with one_line(StoreUnavailable, "no usable AWS credentials", s3_store_url, "AWS_PROFILE"):
        use(open_store(s3_store_url))


def test_half_of_the_credentials(s3_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with one_line(StoreUnavailable, "no usable AWS credentials"):
        open_store(s3_store_url).get("a")


def test_unknown_profile(s3_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with one_line(ConfigError, "AWS configuration", "ProfileNotFound"):
        open_store(s3_store_url).get("a")


@pytest.mark.parametrize("name", ["get", "create"])
def test_dead_endpoint_is_given_up_in_bounded_time(
    s3_environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)  # botocore's and ours between tries
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections, and nobody else gets it
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with one_line(StoreUnavailable, f"cannot connect to {endpoint}", "s3://bucket/p/a", "check the endpoint"):
            USES[name](open_store("s3://bucket/p", S3Settings(endpoint=endpoint)))
    assert pauses and time.monotonic() - started + sum(pauses) < 15


def test_silent_endpoint_times_out(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.store.s3_client.READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr("indexing.store.s3.RETRY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, by its backlog, and never answers
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with one_line(StoreUnavailable, "did not answer in time", "s3://bucket/a"):
            open_store("s3://bucket", S3Settings(endpoint=endpoint)).get("a")


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:9000", "ftp://host", "http://", f"http://user:{CANARY}@host", "http://a b"]
)
def test_an_endpoint_is_checked(s3_environment: dict[str, str], endpoint: str) -> None:
    with one_line(ConfigError, "endpoint", "http(s)://host[:port]"):
        open_store("s3://bucket", S3Settings(endpoint=endpoint)).get("a")


def test_a_server_needs_no_host_name_for_each_bucket(s3_store_url: str, s3_server: SeaweedFS) -> None:
    store = open_store(s3_store_url, S3Settings(endpoint=s3_server.endpoint.replace("127.0.0.1", "localhost")))
    store.put("a", b"1")
    assert store.get("a") == b"1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "s3://",
        "s3:///a",
        f"s3://key:{CANARY}@bucket/a",
        "gs://bucket/a",
        "http://host/a",
        "file://host/a",
        "s3:/a",
    ],
)
def test_a_url_of_no_known_kind_is_refused(url: str) -> None:
    with one_line(ConfigError, "expected s3://bucket/prefix"):
        open_store(url)


def test_a_prefix_that_climbs_is_refused() -> None:
    with one_line(ConfigError, "s3://bucket/prefix", "a/../b"):
        open_store("s3://bucket/a/../b")


def test_a_folder_is_found_by_url_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = {open_store(url).url for url in ("file://./st", "st", "./st", f"file://{tmp_path}/st", f"{tmp_path}/st/")}
    assert urls == {f"file://{tmp_path}/st"}


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("not a store")
    with one_line(ConfigError, "expected a folder", f"file://{tmp_path}/f", "got a file"):
        open_store(f"file://{tmp_path}/f")


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "st"))
    store.put("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (store.put, store.create):
        with one_line(StoreUnavailable, "No space left on device", f"{store.url}/b"):
            write("b", b"new")
    assert [info.key for info in store.list()] == ["a"]
    assert store.list_uploads() == ()


def test_a_lack_of_hard_links_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path / "st"))
    with one_line(StoreUnavailable, "expected hard links", store.url):
        store.create("a", b"1")
    assert list(store.list()) == []


def test_a_folder_that_cannot_be_listed_gives_no_partial_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    for key in ("a/1", "b/1"):
        store.put(key, b"1")
    scandir = os.scandir

    def refuse_b(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse_b)
    with one_line(StoreUnavailable, "Permission denied"):
        store.list()


def test_abandoned_uploads_are_listed_and_aborted(s3_store_url: str) -> None:
    bucket, _, prefix = s3_store_url.removeprefix("s3://").partition("/")
    store = S3Store(s3_store_url, S3Settings(), page_size=2)
    client = boto3.client("s3")
    for name in "abcde":
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/blobs/{name}")
    uploads = store.list_uploads("blobs/")
    assert {upload.key for upload in uploads} == {f"blobs/{name}" for name in "abcde"}
    assert all(abs(upload.started - store.now()) < 5 for upload in uploads)
    assert store.list_uploads("other/") == ()
    for upload in uploads:
        store.abort_upload(upload)
        store.abort_upload(upload)
    assert store.list_uploads() == ()


def test_a_killed_writer_s_temporary_file_is_listed_and_aborted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"1")
    (tmp_path / ".tmp" / f"a%2Fb.{'0' * 32}").write_bytes(b"half")
    (upload,) = store.list_uploads("a/")
    assert upload.key == "a/b"
    assert store.list_uploads("b/") == ()
    assert [info.key for info in store.list()] == ["a/b"]
    store.abort_upload(upload)
    store.abort_upload(upload)
    assert store.list_uploads() == ()
    assert store.get("a/b") == b"1"


# ---- symbolic links in a folder ----


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is not part of the store `tmp_path/store`."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("keep me")
    return folder


@pytest.mark.parametrize("where", ["a", "a/b"])
@pytest.mark.parametrize(
    "use",
    [
        lambda store, key: list(store.list("a/")),
        lambda store, key: store.delete(key),
        lambda store, key: store.put(key, b"1"),
        lambda store, key: store.create(key, b"1"),
    ],
)
def test_a_linked_folder_is_not_listed_written_or_deleted(
    tmp_path: Path, outside: Path, where: str, use: Callable[[Store, str], object]
) -> None:
    link = tmp_path / "store" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with one_line(DataError, f"expected a folder at file://{link}, got a symbolic link"):
        use(open_store(str(tmp_path / "store")), f"{where}/file")
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "keep me"


def test_a_linked_folder_of_temporary_files_is_left_alone(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".tmp").symlink_to(outside)
    store = open_store(str(tmp_path / "store"))
    upload = PendingUpload(key="a", upload_id="file", started=0.0)
    for use in (store.list_uploads, lambda: store.abort_upload(upload), store.now, lambda: store.put("a", b"1")):
        with one_line(DataError, "/store/.tmp, got a symbolic link"):
            use()
    assert (outside / "file").exists()


def test_the_root_may_be_a_link_and_a_linked_file_reads_and_is_deleted_as_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = open_store(str(tmp_path / "link"))
    store.put("a/b", b"1")
    (tmp_path / "real" / "a" / "c").symlink_to(outside / "file")
    assert [info.key for info in store.list()] == ["a/b", "a/c"]
    assert store.get("a/c") == b"keep me"
    store.delete("a/c")
    assert [info.key for info in store.list("a/")] == ["a/b"]
    assert (outside / "file").exists()
