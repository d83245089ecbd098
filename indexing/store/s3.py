"""A store in an S3 bucket, on AWS or any server that speaks S3 and honours conditional PUT."""

from __future__ import annotations

import random
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from indexing.errors import DamagedError, ObjectNotFound, StoreUnavailable
from indexing.store.base import (
    ObjectInfo,
    PendingUpload,
    S3Settings,
    Store,
    check_key,
    check_prefix,
    no_conditional_put,
    replacing_file,
)
from indexing.store.blobs import hash_file
from indexing.store.multipart import base64_sha256, download_in_parts, full_sha256, upload_in_parts
from indexing.store.s3_client import check_endpoint, make_client, parse_url
from indexing.store.s3_errors import error_status, in_doubt, s3_errors, worth_retrying

MULTIPART_BYTES = 64 << 20
"""Files of this size or larger are uploaded in parts."""
PART_BYTES = 16 << 20
NUM_TRANSFERS = 4
"""Parts in flight at once, up or down: 64 MiB of memory."""

NUM_TRIES = 4
"""Tries around botocore's own: that stops them early once many have failed (its retry quota), and never repeats a 409
or a body that broke off. The pauses add up to 3.5 to 7 s."""
RETRY_S = 60.0
"""No new try starts later than this, in seconds."""

T = TypeVar("T")


class S3Store(Store):
    """Objects under `s3://bucket/prefix`. The client is made on first use and is not pickled."""

    def __init__(
        self,
        url: str,
        settings: S3Settings,
        *,
        multipart_bytes: int = MULTIPART_BYTES,
        part_bytes: int = PART_BYTES,
        page_size: int = 1000,
    ) -> None:
        self._bucket, self._prefix = parse_url(url)
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._settings = settings
        self._multipart_bytes, self._part_bytes, self._page_size = multipart_bytes, part_bytes, page_size
        self._made_client: Any = None
        self._lock = threading.Lock()
        self._bucket_seen = False
        check_endpoint(settings.endpoint)

    def __reduce__(self) -> tuple[Callable[..., S3Store], tuple[Any, ...]]:
        sizes: dict[str, Any] = {
            "multipart_bytes": self._multipart_bytes,
            "part_bytes": self._part_bytes,
            "page_size": self._page_size,
        }
        return partial(S3Store, **sizes), (self.url, self._settings)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        def read() -> bytes:
            answer = self._request("get_object", key)
            if max_bytes is not None and answer["ContentLength"] > max_bytes:
                answer["Body"].close()
                size_bytes = answer["ContentLength"]
                raise DamagedError(f"expected at most {max_bytes} bytes in {self.describe(key)}, got {size_bytes}")
            return _read_body(answer)

        return self._retry(key, read)

    def get_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        return self._read_range(key, start, num_bytes, etag) if num_bytes > 0 else b""

    def download(self, key: str, path: Path) -> None:
        info = self.head(key)
        if info is None:
            raise ObjectNotFound(f"expected {self.describe(key)} to exist, found nothing there")
        with replacing_file(path) as file:
            if info.size_bytes <= self._part_bytes:
                file.write(self.get(key))
            else:
                read = partial(self._read_range, key, etag=info.etag)
                download_in_parts(read, file, info.size_bytes, part_bytes=self._part_bytes, num_threads=NUM_TRANSFERS)

    def put(self, key: str, data: bytes) -> None:
        self._call("put_object", key, Body=data, ChecksumSHA256=base64_sha256(data))

    def upload(self, key: str, path: Path, sha256: str) -> bool:
        if path.stat().st_size >= self._multipart_bytes:
            call = partial(self._call, key=key)
            return upload_in_parts(call, path, sha256, part_bytes=self._part_bytes, num_threads=NUM_TRANSFERS)
        found = hash_file(path)
        if found != sha256:
            raise DamagedError(f"expected sha256 {sha256} of {path}, got {found}")
        checksum = b64encode(bytes.fromhex(sha256)).decode()

        def send() -> dict[str, Any]:
            with path.open("rb") as file:  # from its start at each try
                return self._request("put_object", key, Body=file, ChecksumSHA256=checksum)

        return bool(self._retry(key, send).get("ChecksumSHA256") == checksum)

    def create(self, key: str, data: bytes) -> bool:
        checksum = base64_sha256(data)
        for attempt in range(NUM_TRIES):
            try:
                self._request("put_object", key, Body=data, ChecksumSHA256=checksum, IfNoneMatch="*")
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError) and error_status(error) == 501:
                    raise no_conditional_put(self.url, "it answers that it is not implemented") from error
                # Botocore repeats a PUT whose answer was lost, and then reports 412 for its own bytes.
                if not in_doubt(error):
                    with s3_errors(self.describe(key)):
                        raise
                ours = self._is_stored(key, data)
                if ours is not None:
                    return ours
                _pause(attempt)
            else:
                return True
        raise StoreUnavailable(f"cannot tell whether {self.describe(key)} was created: no clear answer; run again")

    def head(self, key: str) -> ObjectInfo | None:
        try:
            answer = self._call("head_object", key, ChecksumMode="ENABLED")
        except ObjectNotFound:
            self._check_bucket()
            return None
        return ObjectInfo(
            key=key,
            size_bytes=answer["ContentLength"],
            modified=answer["LastModified"].timestamp(),
            etag=answer.get("ETag", "").strip('"') or None,
            sha256=full_sha256(answer),
        )

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pages = self._pages("list_objects_v2", check_prefix(prefix), {"ContinuationToken": "NextContinuationToken"})
        infos = [
            ObjectInfo(
                key=item["Key"].removeprefix(self._folder()),
                size_bytes=item["Size"],
                modified=item["LastModified"].timestamp(),
                etag=item.get("ETag", "").strip('"') or None,
                sha256=None,
            )
            for page in pages
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # a folder marker that some tools leave
        ]
        # AWS sorts by UTF-8 bytes; SeaweedFS 4.48 lists the folder a/ before a-b.
        return iter(sorted(infos, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        self._call("delete_object", key)

    def now(self) -> float:
        date = self._call("head_bucket")["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise StoreUnavailable(f"{self.url} sends no Date header: its clock cannot be read")
        return parsedate_to_datetime(date).timestamp()

    def address(self) -> str:
        return f"{self.url} at {self._client().meta.endpoint_url}"

    def list_uploads(self, prefix: str = "") -> tuple[PendingUpload, ...]:
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        uploads = [
            PendingUpload(
                key=item["Key"].removeprefix(self._folder()),
                upload_id=item["UploadId"],
                started=item["Initiated"].timestamp(),
            )
            for page in self._pages("list_multipart_uploads", check_prefix(prefix), markers)
            for item in page.get("Uploads", [])
        ]
        return tuple(sorted(uploads, key=lambda upload: upload.started))

    def abort_upload(self, upload: PendingUpload) -> None:
        try:
            self._call("abort_multipart_upload", upload.key, UploadId=upload.upload_id)
        except ObjectNotFound:
            self._check_bucket()

    def _read_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        """A range, of the object with that `etag` where one is given."""
        arguments = {"Range": f"bytes={start}-{start + num_bytes - 1}"} | ({"IfMatch": f'"{etag}"'} if etag else {})

        def read() -> bytes:
            try:
                answer = self._request("get_object", key, **arguments)
            except ClientError as error:
                if error_status(error) == 416:  # start is at the end or past it
                    return b""
                raise
            if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                answer["Body"].close()
                raise StoreUnavailable(f"{self.describe(key)}: the server does not honour range requests")
            return _read_body(answer)

        return self._retry(key, read)

    def _is_stored(self, key: str, data: bytes) -> bool | None:
        """Whether `key` holds `data`; None while it is absent."""
        try:
            return self.get(key, max_bytes=len(data)) == data
        except DamagedError:  # larger, so it is not ours
            return False
        except ObjectNotFound:
            return None

    def _check_bucket(self) -> None:
        """A HEAD answers a bare 404 for a missing key and a missing bucket alike: check the bucket, once."""
        if not self._bucket_seen:
            self._call("head_bucket")
            self._bucket_seen = True

    def _pages(self, operation: str, prefix: str, markers: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Every page of a listing; raises StoreUnavailable for one that says there is more but not where."""
        limit = "MaxKeys" if operation == "list_objects_v2" else "MaxUploads"
        arguments: dict[str, Any] = {"Prefix": self._folder() + prefix, limit: self._page_size}
        position: dict[str, str] = {}
        while True:
            page = self._call(operation, **arguments, **position)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {name: page[answer] for name, answer in markers.items() if page.get(answer)}
            if not following or following == position:
                raise StoreUnavailable(f"{self.url} broke off its listing of {prefix!r}: nothing can be concluded")
            position = following

    def _call(self, operation: str, key: str | None = None, **arguments: Any) -> dict[str, Any]:
        return self._retry(key, lambda: self._request(operation, key, **arguments))

    def _request(self, operation: str, key: str | None, **arguments: Any) -> dict[str, Any]:
        """One operation, with botocore's own retries and errors."""
        if key is not None:
            arguments["Key"] = self._full(key)
        answer: dict[str, Any] = getattr(self._client(), operation)(Bucket=self._bucket, **arguments)
        return answer

    def _retry(self, key: str | None, action: Callable[[], T]) -> T:
        deadline = time.monotonic() + RETRY_S
        with s3_errors(self.url if key is None else self.describe(key)):
            for attempt in range(NUM_TRIES - 1):
                try:
                    return action()
                except (ClientError, BotoCoreError) as error:
                    if not worth_retrying(error) or time.monotonic() > deadline:
                        raise
                _pause(attempt)
            return action()

    def _client(self) -> Any:
        with self._lock:
            if self._made_client is None:
                self._made_client = make_client(self.url, self._settings)
            return self._made_client

    def _folder(self) -> str:
        return f"{self._prefix}/" if self._prefix else ""

    def _full(self, key: str) -> str:
        return self._folder() + check_key(key)


def _read_body(answer: dict[str, Any]) -> bytes:
    """The whole body; botocore raises when it is shorter than announced or has another checksum."""
    with closing(answer["Body"]) as body:  # the body's own `with` gives the raw stream, which checks neither
        data: bytes = body.read()
    return data


def _pause(attempt: int) -> None:
    """0.5 to 1 s after the first try, then twice as long each time; random, so that many clients spread."""
    time.sleep(random.uniform(0.5, 1.0) * 2**attempt)
