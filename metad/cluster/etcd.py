"""A client of etcd 3.4 and later, over its JSON gateway.

    read, prefix   linearizable: a majority of etcd's members has taken part
    transact       compare and swap
    watch          changes from a revision on, until the connection ends

Rules of this file:

* Endpoints are tried in turn, and the one that answered last comes first.  An attempt takes two
  seconds at most; a call is over after one attempt at each.
* A transaction that changes something is sent once, unless no connection was made: after an error
  the caller has to read what became of it.
* aiohttp is imported when a client is made, so that a hub without etcd does without it.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Self

from metad.cluster.etcd_json import (
    Changes,
    CompactedError,
    EtcdError,
    EtcdRefusesError,
    Json,
    LongAnswerError,
    Outcome,
    Reading,
    changes_of,
    end_of_prefix,
    outcome_of,
    revision_of,
    rows_of,
    text,
)
from metad.config.model import ClusterConfig
from metad.errors import ConfigError, UnavailableError
from metad.limits import ETCD_ANSWER, ETCD_ATTEMPT, ETCD_PAGE, ETCD_PAGE_ATTEMPT, MIB

if TYPE_CHECKING:
    import aiohttp

_UNAVAILABLE, _OUT_OF_RANGE = 14, 11  # codes of gRPC: try another one; compacted
_LATER = (408, 500, 502, 503, 504)  # what a member without a leader answers, or a proxy
_CHUNK = 64 * 1024


class _NotSentError(EtcdError):
    """No connection was made."""


class _ElsewhereError(EtcdError):
    """This endpoint does not answer, or has no leader."""


class Etcd:
    """Made and used within a running loop.  Raises UnavailableError, ConfigError when made."""

    def __init__(self, config: ClusterConfig) -> None:
        aiohttp = load()
        self._errors = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
        self._not_sent = aiohttp.ClientConnectorError
        self._timeout = aiohttp.ClientTimeout
        self._endpoints = config.etcd
        self._at = 0
        # None: as the library verifies by default; it is not used for http.
        context = (
            tls_context(config) if any(url[:5] == "https" for url in self._endpoints) else True
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    @property
    def endpoint(self) -> str:
        """The one that is tried first."""
        return self._endpoints[self._at]

    # -- keys

    async def get(self, key: str) -> Reading:
        """At most one row.  Raises EtcdError."""
        return _reading(await self._call("kv/range", {"key": text(key)}))

    async def prefix(
        self, prefix: str, revision: int = 0, page: int = ETCD_PAGE
    ) -> AsyncGenerator[Reading, None]:
        """All rows below `prefix`, page by page, as they were at one revision: that of the first
        page, or `revision`.  At least one page; smaller ones than `page` where rows are large.
        Raises EtcdError, CompactedError."""
        end, key = text(end_of_prefix(prefix)), text(prefix)
        while True:
            request = {"key": key, "range_end": end, "limit": str(page), "revision": str(revision)}
            try:
                answer = await self._call("kv/range", request, patience=ETCD_PAGE_ATTEMPT)
            except LongAnswerError:
                if page == 1:
                    raise
                page //= 2
                continue
            found = _reading(answer)
            revision = revision or found.revision
            yield found._replace(revision=revision)
            if not found.more or not found.rows:
                return
            key = text(found.rows[-1].key + "\0")

    async def read(self, *requests: Json) -> Outcome:
        """What several `reads` find at one revision.  Raises EtcdError."""
        return outcome_of(await self._call("kv/txn", {"success": requests}))

    async def transact(
        self, compare: Sequence[Json], then: Sequence[Json], otherwise: Sequence[Json] = ()
    ) -> Outcome:
        """At most 128 operations.  Raises EtcdError: it may have succeeded all the same."""
        request = {"compare": compare, "success": then, "failure": otherwise}
        return outcome_of(await self._call("kv/txn", request, again=False))

    # -- leases

    async def grant(self, seconds: int) -> int:
        """A new lease.  Raises EtcdError."""
        return _number(await self._call("lease/grant", {"TTL": str(seconds)}), "ID")

    async def keep_alive(self, lease: int) -> int:
        """The seconds that it has now; 0: it has ended.  Raises EtcdError."""
        answer = await self._call("lease/keepalive", {"ID": str(lease)})
        result = answer.get("result")
        return _number(result if isinstance(result, dict) else answer, "TTL")

    async def revoke(self, lease: int) -> None:
        """Raises EtcdError."""
        await self._call("lease/revoke", {"ID": str(lease)})

    # -- watches

    async def watch(self, first: str, end: str, revision: int) -> AsyncGenerator[Changes, None]:
        """Changes of keys from `first` until before `end`, from this revision on.

        It begins with no changes, once etcd watches.  It never ends by itself; close it (aclosing).
        Raises EtcdError when the connection is lost, CompactedError if the revision is gone.
        """
        wanted = {"key": text(first), "range_end": text(end), "start_revision": str(revision)}
        body = {"create_request": {**wanted, "fragment": True}}
        timeout = self._timeout(total=None, sock_connect=ETCD_ATTEMPT)
        try:
            async with self._post("watch", body, timeout) as response:
                async for line in _lines(response):
                    yield changes_of(_result(line))
        except self._errors as error:
            self._next()
            raise EtcdError(f"the watch on etcd ended: {_shown(error)}") from None
        except EtcdError as error:
            if not isinstance(error, CompactedError):
                self._next()
            raise

    # -- requests

    async def _call(
        self, path: str, body: Json, *, again: bool = True, patience: float = ETCD_ATTEMPT
    ) -> Json:
        """Raises EtcdError, CompactedError.  `again`: it may be sent twice."""
        errors: list[str] = []
        for _ in self._endpoints:
            endpoint = self.endpoint
            try:
                return await self._attempt(path, body, patience)
            except _NotSentError as error:
                errors.append(f"{endpoint}: {error}")
            except _ElsewhereError as error:
                errors.append(f"{endpoint}: {error}")
                if not again:
                    self._next()
                    break
            self._next()
        raise EtcdError(f"etcd does not answer: {'; '.join(errors)}")

    def _next(self) -> None:
        self._at = (self._at + 1) % len(self._endpoints)

    async def _attempt(self, path: str, body: Json, patience: float) -> Json:
        """Raises EtcdError."""
        try:
            timeout = self._timeout(total=patience, sock_connect=ETCD_ATTEMPT)
            async with self._post(path, body, timeout) as response:
                found = json.loads(await _whole(response))
        except self._not_sent as error:
            raise _NotSentError(_shown(error)) from None
        except self._errors as error:
            raise _ElsewhereError(_shown(error)) from None
        if not isinstance(found, dict):
            raise _ElsewhereError("not etcd")
        if response.status == 200 and "error" not in found:
            return found
        raise _refusal(response.status, found)

    @asynccontextmanager
    async def _post(
        self, path: str, body: Json, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url, data = f"{self.endpoint}/v3/{path}", json.dumps(body).encode()
        async with self._session.post(
            url,
            data=data if len(data) <= MIB else io.BytesIO(data),  # as aiohttp wants large ones
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            yield response


def load() -> ModuleType:
    """aiohttp, imported as long as its files may be read.  Raises UnavailableError."""
    try:
        return importlib.import_module("aiohttp")
    except ImportError:
        raise UnavailableError(
            "cluster.etcd needs the Python package aiohttp", remedy="install metad[cluster]"
        ) from None


def tls_context(config: ClusterConfig) -> ssl.SSLContext:
    """Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=config.etcd_ca)
        if config.etcd_certificate is not None and config.etcd_key is not None:
            context.load_cert_chain(config.etcd_certificate, config.etcd_key)
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(str(path) for path in config.etcd_files)
        raise ConfigError(
            f"cluster.etcd_ca, etcd_certificate, etcd_key: {error.strerror or error} ({names})",
            remedy="give PEM files that the hub's user may read: see metad.toml(5)",
        ) from None
    return context


def _refusal(status: int, found: Json) -> EtcdError:
    """What an answer with an error means."""
    error = found.get("error")
    details = error if isinstance(error, dict) else found
    reason = str(details.get("message") or error or f"status {status}")[:200]
    code = details.get("code", details.get("grpc_code"))
    if code == _OUT_OF_RANGE and "compacted" in reason:
        return CompactedError(0)
    if code == _UNAVAILABLE or status in _LATER:
        return _ElsewhereError(reason)
    return EtcdRefusesError(f"etcd refuses: {reason}")


def _reading(answer: Json) -> Reading:
    return Reading(revision_of(answer), rows_of(answer), answer.get("more") is True)


def _number(answer: Json, name: str) -> int:
    """Raises EtcdError."""
    try:
        return int(answer.get(name, 0))
    except (TypeError, ValueError):
        raise EtcdError(f"an answer of etcd has a bad {name}") from None


def _result(line: bytes) -> Json:
    """What a line of a stream has.  Raises EtcdError, ValueError."""
    found = json.loads(line)
    if isinstance(found, dict) and isinstance(found.get("result"), dict):
        result: Json = found["result"]
        return result
    raise _refusal(0, found if isinstance(found, dict) else {})


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Raises LongAnswerError."""
    found = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        found += chunk
        if len(found) > ETCD_ANSWER:
            raise LongAnswerError
    return bytes(found)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Raises ValueError if a line is too long, EOFError never: the end is an OSError."""
    held = bytearray()
    async for chunk in response.content.iter_any():
        held += chunk
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end])
            del held[: end + 1]
            yield line
        if len(held) > ETCD_ANSWER:
            raise ValueError("its answer is too long")
    raise ConnectionResetError("closed by etcd")


def _shown(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {reason.verify_message}"
    if isinstance(reason, ssl.SSLError) and reason.reason:
        return reason.reason.replace("_", " ").lower()
    number = getattr(reason, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return str(reason) or type(reason).__name__
