"""What every store promises, tested with a folder and with a real S3 server."""

import hashlib
import pickle
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.errors import DamagedError, DataError, ObjectNotFound
from indexing.store import S3Settings, Store, open_store, preflight
from indexing.store.s3 import S3Store

MIB = 1 << 20
NUM_RACERS = 50


@pytest.fixture
def store(store_url: str) -> Store:
    """Small parts and pages, so that a few MiB and a few keys show what gigabytes and thousands of keys do."""
    if store_url.startswith("s3://"):
        return S3Store(store_url, S3Settings(), multipart_bytes=6 * MIB, part_bytes=5 * MIB, page_size=7)
    return open_store(store_url)


def random_file(path: Path, size_bytes: int) -> tuple[Path, str]:
    path.write_bytes(random.Random(size_bytes).randbytes(size_bytes))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "one byte", "1.2 MiB"])
def test_what_is_put_is_got(store: Store, data: bytes) -> None:
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    assert store.get("a/b.bin", max_bytes=len(data)) == data


def test_put_replaces(store: Store) -> None:
    store.put("a", b"old and long")
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_nothing_is_stored_by_looking(store: Store, tmp_path: Path) -> None:
    assert store.head("a") is None
    assert list(store.list()) == []
    assert store.list_uploads() == ()
    assert not (tmp_path / "store").exists()


def test_a_missing_key_is_distinguished(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"1")
    for read in (store.get, store.open, lambda key: store.get_range(key, 0, 1)):
        for key in ("b", "a", "a/b/c"):
            with pytest.raises(ObjectNotFound, match="found nothing"):
                read(key)
    with pytest.raises(ObjectNotFound):
        store.download("b", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == []
    assert store.head("a") is None


def test_delete_removes_and_forgives_a_missing_key(store: Store) -> None:
    store.put("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert store.head("a/b") is None
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("start", "num_bytes", "expected"),
    [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 10, b"89"), (10, 1, b""), (99, 5, b""), (2, 0, b"")],
)
def test_ranges_stop_at_the_end(store: Store, start: int, num_bytes: int, expected: bytes) -> None:
    store.put("a", b"0123456789")
    assert store.get_range("a", start, num_bytes) == expected


def test_larger_than_allowed_is_refused_before_reading(store: Store) -> None:
    store.put("a", b"12345")
    with pytest.raises(DamagedError, match=r"at most 4 bytes .+, got 5"):
        store.get("a", max_bytes=4)


def test_parquet_reads_through_open(store: Store, tmp_path: Path) -> None:
    table = pa.table({"id": [f"item-{n}" for n in range(50_000)], "x": pa.array(range(50_000), pa.float32())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5000)
    path = tmp_path / "t.parquet"
    store.upload("t.parquet", path, hashlib.sha256(path.read_bytes()).hexdigest())
    with store.open("t.parquet") as file:
        assert pq.ParquetFile(file).read(columns=["x"]).equals(table.select(["x"]))
        assert pq.ParquetFile(file).read_row_group(7).equals(table.slice(35_000, 5000))


def test_open_seeks_and_reads_like_a_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.store.base.READ_BUFFER_BYTES", 1000)
    data = random.Random(3).randbytes(20_000)
    store.put("a", data)
    dice = random.Random(4)
    with store.open("a") as file:
        for _ in range(20):
            start, size = dice.randrange(20_500), dice.choice([1, 10, 999, 1000, 5001])
            assert file.seek(start) == start
            assert file.read(size) == data[start : start + size]
            assert file.tell() == max(start, min(start + size, len(data)))
        assert file.seek(-5, 2) == len(data) - 5
        assert file.read() == data[-5:]


def test_list_is_sorted_and_takes_plain_prefixes(store: Store) -> None:
    keys = ["a-b", "a.b", "a/b", "a/c/d", "aB", "ab", "b/ü", "b/z", "b/\uff5e", "b/\U0001f600", "b c/+%20#?&.json"]
    for key in random.Random(5).sample(keys, len(keys)):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == sorted(keys, key=str.encode)
    for prefix in ("a", "a/", "a/c", "b/", "b c/", "nothing", "a/b/"):
        assert [info.key for info in store.list(prefix)] == sorted(k for k in keys if k.startswith(prefix))
    assert all(store.get(info.key).decode() == info.key for info in store.list())


def test_list_continues_past_a_page(store: Store) -> None:
    keys = [f"p/{n:03}" for n in range(30)]
    for key in keys:
        store.put(key, b"123")
    infos = list(store.list("p/"))
    assert [info.key for info in infos] == keys
    assert {info.size_bytes for info in infos} == {3}


def test_head_and_list_give_size_time_and_tag(store: Store) -> None:
    before = store.now()
    store.put("a", b"12345")
    info, (listed,) = store.head("a"), store.list()
    assert info is not None
    assert info.size_bytes == listed.size_bytes == 5
    assert before - 1 <= info.modified <= store.now() + 1
    assert info.modified == listed.modified
    assert info.etag == listed.etag
    store.put("a", b"54321")
    changed = store.head("a")
    assert changed is not None
    assert changed.etag != info.etag


def test_a_sha256_that_is_reported_is_the_object_s_own(store: Store, tmp_path: Path) -> None:
    path, sha256 = random_file(tmp_path / "f", MIB)
    verified = store.upload("f", path, sha256)
    store.put("g", path.read_bytes())
    expected = sha256 if store.url.startswith("s3:") else None  # a folder has none
    assert verified == (expected is not None)
    assert [info and info.sha256 for info in (store.head("f"), store.head("g"))] == [expected, expected]


@pytest.mark.parametrize("size_bytes", [0, MIB, 6 * MIB, 12 * MIB + 1], ids=["empty", "one PUT", "2 parts", "3 parts"])
def test_upload_and_download_keep_every_byte(store: Store, tmp_path: Path, size_bytes: int) -> None:
    path, sha256 = random_file(tmp_path / "f", size_bytes)
    verified = store.upload("blobs/f", path, sha256)
    assert verified == store.url.startswith("s3:")  # SeaweedFS checks the SHA-256 of parts too
    store.download("blobs/f", tmp_path / "g")
    assert hashlib.sha256((tmp_path / "g").read_bytes()).hexdigest() == sha256
    info = store.head("blobs/f")
    assert info is not None
    assert info.size_bytes == size_bytes
    assert store.list_uploads() == ()


@pytest.mark.parametrize("size_bytes", [MIB, 12 * MIB], ids=["one PUT", "parts"])
def test_a_file_that_is_not_what_its_digest_says_is_not_stored(store: Store, tmp_path: Path, size_bytes: int) -> None:
    path, sha256 = random_file(tmp_path / "f", size_bytes)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match=f"expected sha256 {sha256}"):
        store.upload("f", path, sha256)
    assert store.head("f") is None
    assert store.list_uploads() == ()


def test_create_stores_once(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.get("a/b") == b"first"


def test_create_knows_its_own_bytes_again(store: Store) -> None:
    assert store.create("a", b"writer 1")
    assert store.create("a", b"writer 1")


@pytest.mark.case(4)
def test_of_fifty_concurrent_creates_one_wins(store: Store) -> None:
    start = threading.Barrier(NUM_RACERS)

    def race(number: int) -> bool:
        start.wait()
        return store.create("releases/1.json", f"writer {number}".encode())

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        won = list(pool.map(race, range(NUM_RACERS)))
    assert sum(won) == 1
    assert store.get("releases/1.json") == f"writer {won.index(True)}".encode()


def test_a_reader_never_sees_part_of_a_write(store: Store, tmp_path: Path) -> None:
    versions = [bytes([n]) * (300_000 + n) for n in range(4)]
    files = []
    for n, data in enumerate(versions):
        (tmp_path / f"{n}").write_bytes(data)
        files.append((tmp_path / f"{n}", hashlib.sha256(data).hexdigest()))
    store.put("a", versions[0])
    done = threading.Event()

    def read() -> Iterator[bytes]:
        while not done.is_set():
            yield store.get("a")

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(lambda: set(read())) for _ in range(3)]
        try:
            for n in range(30):
                if n % 2:
                    store.put("a", versions[n % 4])
                else:
                    store.upload("a", *files[n % 4])
        finally:
            done.set()
        seen = set().union(*(reader.result() for reader in readers))
    assert seen <= set(versions)


@pytest.mark.parametrize(
    "key", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a/.", "a\\b", "a\nb", "a\0", ".tmp/a", "x" * 1025]
)
def test_a_key_stays_inside_the_store(store: Store, tmp_path: Path, key: str) -> None:
    for use in (
        store.get,
        store.head,
        store.delete,
        lambda key: store.put(key, b""),
        lambda key: store.create(key, b""),
    ):
        with pytest.raises(DataError, match="expected a relative key"):
            use(key)
    with pytest.raises(DataError):
        store.get_range(key, 0, 1)
    with pytest.raises(DataError):
        store.download(key, tmp_path / "f")


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", ".tmp/"])
def test_a_prefix_stays_inside_the_store(store: Store, prefix: str) -> None:
    for use in (store.list, store.list_uploads):
        with pytest.raises(DataError, match="expected the start of a relative key"):
            use(prefix)


def test_a_folder_refuses_what_only_s3_can_hold(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"1")
    for key, expected in (("a/b/c", "no file where"), ("a", "no folder at")):
        with pytest.raises(DataError, match=expected):
            store.put(key, b"2")
        with pytest.raises(DataError, match=expected):
            store.create(key, b"2")
    assert [info.key for info in store.list()] == ["a/b"]
    assert store.list_uploads() == ()


def test_a_store_travels_in_a_pickle(store: Store) -> None:
    store.put("a", b"1")  # the client exists and must stay here
    copy = pickle.loads(pickle.dumps(store))
    assert copy.url == store.url
    assert copy.get("a") == b"1"
    assert b"secret" not in pickle.dumps(store)


def test_the_clock_is_the_one_of_modified(store: Store) -> None:
    store.put("a", b"1")
    info = store.head("a")
    assert info is not None
    assert abs(store.now() - info.modified) < 2
    assert abs(store.now() - time.time()) < 2  # one machine here


def test_preflight_passes_and_leaves_nothing(store: Store) -> None:
    preflight(store)
    assert list(store.list()) == []
