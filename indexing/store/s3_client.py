"""The client of boto3 (its core, botocore): endpoint, addressing, time-outs, retries.

Credentials come from the usual AWS chain only: environment, files, roles.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from indexing.errors import ConfigError, DataError
from indexing.store.base import S3Settings, check_key
from indexing.store.s3_errors import s3_errors

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
"""SeaweedFS 4.48 makes racing conditional PUTs wait in steps of 1 s: of 50 at once the slowest took up to 13 s."""
MAX_ATTEMPTS = 4
"""Botocore's tries of one request."""
MAX_CONNECTIONS = 50
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


def parse_url(url: str) -> tuple[str, str]:
    """`s3://bucket/some/prefix` -> ("bucket", "some/prefix"). Raises ConfigError."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not BUCKET.fullmatch(bucket):  # not repeated in the message: a URL with a key in it would show the key
        raise ConfigError("expected s3://bucket/prefix with a bucket name of letters, digits, '.', '_' and '-'")
    prefix = prefix.strip("/")
    try:
        return bucket, check_key(prefix) if prefix else ""
    except DataError as error:
        raise ConfigError(f"expected s3://bucket/prefix with a plain prefix: {error}") from error


def check_endpoint(endpoint: str | None) -> None:
    """Raises ConfigError unless `endpoint` is None or http(s)://host[:port] without a user name."""
    if endpoint is not None and not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", endpoint):
        raise ConfigError("expected the S3 endpoint as http(s)://host[:port], without a user name or key in it")


def make_client(url: str, settings: S3Settings) -> Any:
    """A client for the store at `url`, safe to share between threads. Contacts nothing."""
    with s3_errors(url):
        try:
            session = botocore.session.get_session()
            session.register_component("data_loader", _models())
            client = _new_client(session, settings, {})
            if _is_aws(client) or (client.meta.config.s3 or {}).get("addressing_style", "auto") != "auto":
                return client
            # Other servers rarely have a host name for each bucket.
            return _new_client(session, settings, {"addressing_style": "path"})
        except ValueError as error:  # what botocore raises for an endpoint that is not a URL
            raise ConfigError(f"expected http(s)://host[:port] as the S3 endpoint for {url}") from error


@cache
def _models() -> Loader:
    """S3's API description, parsed once per process: most of the 0.25 s that a client takes otherwise."""
    return botocore.session.get_session().get_component("data_loader")


def _new_client(session: botocore.session.Session, settings: S3Settings, s3: dict[str, str]) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=MAX_CONNECTIONS,
        # Each write brings its own SHA-256; trailing checksums, botocore's default, break on Ceph RGW 16.
        request_checksum_calculation="when_required",
        **({"s3": s3} if s3 else {}),
    )
    return session.create_client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)


def _is_aws(client: Any) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
