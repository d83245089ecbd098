"""Large objects in parts, several at a time; each uploaded part has a SHA-256 that the store can check."""

from __future__ import annotations

import hashlib
import logging
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from indexing.errors import DamagedError, ObjectNotFound, StoreUnavailable

MAX_PARTS = 10_000
"""S3's own limit."""

logger = logging.getLogger(__name__)


class Call(Protocol):
    """One S3 operation on the object that is uploaded, with retries; raises this project's errors."""

    def __call__(self, operation: str, **arguments: Any) -> dict[str, Any]: ...


def upload_in_parts(call: Call, path: Path, sha256: str, *, part_bytes: int, num_threads: int) -> bool:
    """Upload `path`; True when the store has checked the SHA-256 of every part and of their sequence.

    Raises DamagedError when the file's hex digest is not `sha256`. A failed upload is aborted.
    """
    part_bytes = max(part_bytes, -(-path.stat().st_size // MAX_PARTS))
    upload_id = call("create_multipart_upload", ChecksumAlgorithm="SHA256")["UploadId"]
    try:
        parts, found = _send_parts(call, path, upload_id, part_bytes, num_threads)
        if found != sha256:
            raise DamagedError(f"expected sha256 {sha256} of {path}, got {found}")
        return _complete(call, upload_id, parts)
    except ObjectNotFound as error:
        raise StoreUnavailable(f"the unfinished upload of {path} was aborted by another process: run again") from error
    except BaseException:  # an interrupt too: parts of an unfinished upload cost space until they are found
        _abort(call, path, upload_id)
        raise


def download_in_parts(
    read: Callable[[int, int], bytes], file: BinaryIO, size_bytes: int, *, part_bytes: int, num_threads: int
) -> None:
    """Fill `file` with `size_bytes` bytes from `read(start, num_bytes)`. Raises DamagedError when some are missing."""
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="download") as pool:
        try:
            for start in range(0, size_bytes, part_bytes):
                if len(pending) == num_threads:
                    file.write(pending.popleft().result())
                pending.append(pool.submit(read, start, min(part_bytes, size_bytes - start)))
            for future in pending:
                file.write(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if file.tell() != size_bytes:
        raise DamagedError(f"expected {size_bytes} bytes for {file.name}, got {file.tell()}")


def _send_parts(
    call: Call, path: Path, upload_id: str, part_bytes: int, num_threads: int
) -> tuple[list[dict[str, Any]], str]:
    """Send every part, `num_threads` at a time; returns what S3 needs to complete them, and the file's hex SHA-256."""
    digest, parts = hashlib.sha256(), []
    pending: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="upload") as pool:
        try:
            for number, data in enumerate(_pieces(path, part_bytes), start=1):
                digest.update(data)
                if len(pending) == num_threads:
                    parts.append(pending.popleft().result())
                pending.append(pool.submit(_send_part, call, upload_id, number, data))
            parts += [future.result() for future in pending]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return parts, digest.hexdigest()


def _send_part(call: Call, upload_id: str, number: int, data: bytes) -> dict[str, Any]:
    checksum = base64_sha256(data)
    answer = call("upload_part", UploadId=upload_id, PartNumber=number, Body=data, ChecksumSHA256=checksum)
    part = {"PartNumber": number, "ETag": answer["ETag"]}
    # A store without SHA-256 (Ceph RGW 16) returns none, and expects none at the end.
    return {**part, "ChecksumSHA256": checksum} if answer.get("ChecksumSHA256") == checksum else part


def _complete(call: Call, upload_id: str, parts: list[dict[str, Any]]) -> bool:
    try:
        answer = call("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})
    except ObjectNotFound:
        # The upload no longer exists: if the object has its checksum, we completed it and only the answer was lost.
        answer = call("head_object", ChecksumMode="ENABLED")
        if not _has_checksum_of(answer, parts):
            raise
    return _has_checksum_of(answer, parts)


def _has_checksum_of(answer: dict[str, Any], parts: list[dict[str, Any]]) -> bool:
    """Whether the store reports the composite checksum: SHA-256 over the parts' SHA-256, and their count."""
    checksums = [b64decode(part["ChecksumSHA256"]) for part in parts if "ChecksumSHA256" in part]
    composite = f"{base64_sha256(b''.join(checksums))}-{len(parts)}"
    return len(checksums) == len(parts) and answer.get("ChecksumSHA256") == composite


def _abort(call: Call, path: Path, upload_id: str) -> None:
    try:
        call("abort_multipart_upload", UploadId=upload_id)
    except ObjectNotFound:
        pass
    except StoreUnavailable as error:  # the first error is the one to raise; retention aborts what is left
        logger.warning("left an unfinished upload of %s: %s", path.name, error)


def _pieces(path: Path, piece_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(piece_bytes):
            yield piece


def base64_sha256(data: bytes) -> str:
    """SHA-256 as S3 writes it."""
    return b64encode(hashlib.sha256(data).digest()).decode()


def full_sha256(answer: dict[str, Any]) -> str | None:
    """Hex SHA-256 of a whole object from a HEAD; None without one, or with one over parts (it ends in `-N`)."""
    checksum = answer.get("ChecksumSHA256")
    return None if checksum is None or "-" in checksum else b64decode(checksum).hex()
