"""Botocore's many errors, as the few that a caller can act on: one clear line each, and no secret in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from indexing.errors import ConfigError, NightcrateError, ObjectNotFound, ReplacedError, StoreUnavailable

HOW_TO_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
WRONG_SETTINGS = (boto.ProfileNotFound, boto.ConfigParseError, boto.NoRegionError, boto.InvalidRegionError)
TIMEOUTS = (boto.ConnectTimeoutError, boto.ReadTimeoutError)
BROKEN_BODY = (boto.IncompleteReadError, boto.ResponseStreamingError, boto.ReadTimeoutError, boto.FlexibleChecksumError)
"""What reading a response's body can raise; botocore does not retry these."""

WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
SLOW_DOWN = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"}
TRY_AGAIN = SLOW_DOWN | {"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}
DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401"}


@contextmanager
def s3_errors(address: str) -> Iterator[None]:
    """Turn what botocore raises inside the block into this project's errors, naming `address`."""
    try:
        yield
    except ClientError as error:
        raise _of_answer(address, error) from error
    except BotoCoreError as error:
        raise _of_client(address, error) from error


def error_code(error: ClientError) -> str:
    """S3's code; for an answer without a body, as HEAD gives, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def worth_retrying(error: ClientError | BotoCoreError) -> bool:
    """Whether another try may go better: the server was busy, or the network dropped or altered something."""
    if isinstance(error, ClientError):
        status = error_status(error)
        return status in (408, 409) or (status >= 500 and status != 501) or error_code(error) in TRY_AGAIN
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError, *BROKEN_BODY))


def in_doubt(error: ClientError | BotoCoreError) -> bool:
    """Whether a conditional PUT that failed like this may have been stored all the same, by us or by another."""
    return worth_retrying(error) or (isinstance(error, ClientError) and error_status(error) == 412)


def _of_answer(address: str, error: ClientError) -> NightcrateError:
    """What the server said. Its message is left out: some servers echo the key id or the signed text in it."""
    code, status = error_code(error), error_status(error)
    if code == "NoSuchBucket" or (status == 404 and error.operation_name == "HeadBucket"):
        return StoreUnavailable(f"no such bucket for {address}: create it, or correct the URL or the endpoint")
    if status == 404:
        return ObjectNotFound(f"expected {address} to exist, found nothing there")
    if status == 412:
        return ReplacedError(f"{address} was replaced while it was read: run again")
    if code in WRONG_REGION:
        return StoreUnavailable(f"{address} is in another region ({code}): set s3.region or AWS_REGION")
    if code == "RequestTimeTooSkewed":
        return StoreUnavailable(f"{address} refuses this machine's clock: set the clock")
    if code in DENIED or status in (401, 403):
        return StoreUnavailable(f"access to {address} denied ({code}): check the AWS credentials and their permissions")
    if code == "NotImplemented" or status == 501:
        return StoreUnavailable(f"{address} lacks an operation that is needed ({error.operation_name}): {code}")
    if code in SLOW_DOWN or status == 503:
        return StoreUnavailable(f"{address} is overloaded ({code}) and stayed so over all retries: try again later")
    return StoreUnavailable(f"{address} answered {status} {code} to {error.operation_name} after retries")


def _of_client(address: str, error: BotoCoreError) -> NightcrateError:
    if isinstance(error, NO_CREDENTIALS):
        return StoreUnavailable(f"no usable AWS credentials found for {address}: {HOW_TO_SIGN_IN}")
    if isinstance(error, WRONG_SETTINGS):
        return ConfigError(f"cannot use the AWS configuration for {address}: {type(error).__name__}")
    if isinstance(error, boto.ParamValidationError):
        return ConfigError(f"expected a valid bucket and key, got {address}")
    if isinstance(error, boto.EndpointConnectionError):
        endpoint = urlsplit(str(error.kwargs.get("endpoint_url", "")))
        return StoreUnavailable(
            f"cannot connect to {endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]} for {address}: "
            "check the endpoint and the network"
        )
    if isinstance(error, TIMEOUTS):
        return StoreUnavailable(f"{address} did not answer in time over all retries: check the network and endpoint")
    if isinstance(error, boto.SSLError):
        return StoreUnavailable(f"cannot make a TLS connection for {address}: check the endpoint and its certificate")
    if isinstance(error, BROKEN_BODY):
        return StoreUnavailable(f"{address} broke off or altered its answers over all retries")
    return StoreUnavailable(f"cannot connect for {address} ({type(error).__name__}): check the endpoint and network")
