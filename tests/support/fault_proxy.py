"""A loopback HTTP proxy between boto3 and an S3 server that does what networks and busy servers do, by plan.

    with FaultProxy(server.endpoint) as proxy:
        proxy.plan = first(is_put, DROP_RESPONSE)
        store = open_store("s3://bucket/prefix", S3Settings(endpoint=proxy.endpoint))

A plan maps each request to a fault. The Host header goes through unchanged, since SigV4 signs it. One request a
connection, and bodies are held whole: for tests, not for gigabytes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

HOLD_S = 10.0
"""Held requests continue, in order, when no more have come for so long: so a plan that waits for too many ends too."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a plan sees. `number` counts from 0; `path` has the query; header names are in lower case."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request."""

    kind: Literal["none", "reset", "answer", "drop_response", "cut", "alter", "hold"] = "none"
    delay_s: float = 0.0
    """Wait before anything else. The request is forwarded even if its client has given up by then."""
    answer_delay_s: float = 0.0
    """Wait after the server has answered: a time-out of something that was done."""
    status: int = 503
    code: str = "ServiceUnavailable"
    share: float = 0.5
    """How much of the response's body a cut lets through."""


NONE = Fault()
RESET = Fault(kind="reset")
"""The connection breaks before the server has seen the request."""
DROP_RESPONSE = Fault(kind="drop_response")
"""The server does what it was asked, and its answer is lost."""
CUT = Fault(kind="cut")
ALTER = Fault(kind="alter")
"""One bit of the response's body is flipped."""
HOLD = Fault(kind="hold")
"""Wait until `FaultProxy.hold_count` requests are held, then continue one after the other in a shuffled order."""
UNAVAILABLE = Fault(kind="answer", status=503, code="ServiceUnavailable")
SLOW_DOWN = Fault(kind="answer", status=503, code="SlowDown")
INTERNAL_ERROR = Fault(kind="answer", status=500, code="InternalError")
CONFLICT = Fault(kind="answer", status=409, code="ConditionalRequestConflict")

Plan = Callable[[Request], Fault]
Matches = Callable[[Request], bool]
Sign = Callable[[Request], dict[str, str]]


def no_faults(request: Request) -> Fault:
    return NONE


def first(matches: Matches, *faults: Fault) -> Plan:
    """The first requests that match meet these faults, one each; all others pass."""
    left = iter(faults)
    return lambda request: next(left, NONE) if matches(request) else NONE


def always(matches: Matches, fault: Fault) -> Plan:
    return lambda request: fault if matches(request) else NONE


def storm(seed: int, share: float, faults: Sequence[Fault]) -> Plan:
    """Each request meets one of `faults` with probability `share`."""
    dice = random.Random(seed)
    return lambda request: dice.choice(faults) if dice.random() < share else NONE


def without_conditions(access_key: str, secret_key: str) -> Sign:
    """For `FaultProxy(resign=…)`: a server that ignores If-None-Match. SigV4 covers that header, so it signs again."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    def sign(request: Request) -> dict[str, str]:
        kept = {
            name: value for name, value in request.headers.items() if name not in ("if-none-match", "authorization")
        }
        url = f"http://{request.headers['host']}{request.path}"
        signed = AWSRequest(method=request.method, url=url, headers=kept, data=request.body)
        S3SigV4Auth(Credentials(access_key, secret_key), "s3", "us-east-1").add_auth(signed)
        return {name.lower(): value for name, value in signed.headers.items()}

    return sign


class FaultProxy:
    """Listens on a free loopback port from `start` to `stop`; its loop runs in a thread of its own."""

    def __init__(self, target: str, seed: int = 0, hold_count: int = 2, resign: Sign | None = None) -> None:
        """`resign` returns the headers to forward in place of the request's own, for changes that break a signature."""
        parts = urlsplit(target)
        assert parts.hostname is not None
        self._target = (parts.hostname, parts.port or 80)
        self._dice = random.Random(seed)
        self._resign = resign
        self.hold_count = hold_count
        self.plan: Plan = no_faults
        self.log: list[tuple[Request, Fault]] = []
        """Every request in the order of arrival, with what happened to it."""
        self._numbers = itertools.count()
        self._held: list[asyncio.Future[asyncio.Event]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def start(self) -> FaultProxy:
        self._thread.start()
        listen = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listen, self._loop).result()
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._read_request(reader, writer)
            fault = self.plan(request)
            self.log.append((request, fault))
            await asyncio.sleep(fault.delay_s)
            response = await self._respond(request, fault)
            await asyncio.sleep(fault.answer_delay_s)
            writer.write(response)
            await writer.drain()
            if fault.kind in ("reset", "drop_response"):
                writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):  # the client has disconnected, as clients do
            pass
        finally:
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        assert "transfer-encoding" not in headers, "this proxy reads bodies with a Content-Length only"
        if headers.pop("expect", "") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(number=next(self._numbers), method=method, path=path, headers=headers, body=body)

    async def _respond(self, request: Request, fault: Fault) -> bytes:
        """The raw bytes to answer with; none for a request that is reset or whose answer is lost."""
        if fault.kind == "reset":
            return b""
        if fault.kind == "answer":
            return _answer(request, fault)
        if fault.kind == "hold":
            done = await self._hold()
            try:
                return await self._forward(request)
            finally:
                done.set()
        response = await self._forward(request)
        head, separator, body = response.partition(b"\r\n\r\n")
        if fault.kind == "cut":
            return head + separator + body[: int(len(body) * fault.share)]
        if fault.kind == "alter" and body:
            return head + separator + body[:-1] + bytes([body[-1] ^ 1])
        return b"" if fault.kind == "drop_response" else response

    async def _forward(self, request: Request) -> bytes:
        headers = request.headers if self._resign is None else self._resign(request)
        head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "connection": "close"}.items())
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            writer.write(f"{request.method} {request.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + request.body)
            return await reader.read()
        finally:
            writer.close()

    async def _hold(self) -> asyncio.Event:
        """Wait for this request's turn; returns the event to set when it is answered."""
        turn: asyncio.Future[asyncio.Event] = self._loop.create_future()
        self._held.append(turn)
        if len(self._held) >= self.hold_count:
            self._release()
        try:
            return await asyncio.wait_for(asyncio.shield(turn), HOLD_S)
        except TimeoutError:
            self._release()
            return await turn

    def _release(self) -> None:
        held, self._held = self._held, []
        self._dice.shuffle(held)
        self._releasing = self._loop.create_task(_one_by_one(held))


async def _one_by_one(held: list[asyncio.Future[asyncio.Event]]) -> None:
    for turn in held:
        done = asyncio.Event()
        turn.set_result(done)
        await done.wait()


def _answer(request: Request, fault: Fault) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{fault.code}</Code><Message>by plan</Message></Error>'
    head = (
        f"HTTP/1.1 {fault.status} Planned\r\ncontent-type: application/xml\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return (head + ("" if request.method == "HEAD" else body)).encode()
