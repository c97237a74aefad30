# SPDX-License-Identifier: Apache-2.0
"""JSON over HTTPS, with the standard library: limits on time and size, retries, and a key that shows up nowhere."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from foundling.errors import ConfigError, GenerationError
from foundling.evaluate.endpoint_errors import (
    EndpointError,
    code_inside,
    error_text,
    is_permanent,
    retry_after,
    way_out,
)
from foundling.limits import RESPONSE_BYTES, check_number, shown
from foundling.runtime.files import is_shallow

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
"""status codes of what may go away: timeouts, rate limits, overload (529 is Anthropic's, 52x are Cloudflare's)"""
MAX_REDIRECTS = 3
MAX_DELAY = 60.0
"""seconds between two tries, unless the server asks for more"""
KEY_BYTES = 8192
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_REASON = 500
"""characters of what a server says is wrong"""
MIN_SECRET = 8
"""characters of a key that is taken for a secret; local servers are given words such as EMPTY"""


class Secret:
    """An API key. It has no representation that shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not written anywhere")

    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def removed(self, value: Any) -> Any:
        """A text, or JSON with all its texts, without the key, which a server may repeat. Before anything is cut: a
        part of a key is not recognised any more."""
        if len(self._value) < MIN_SECRET:
            return value
        if isinstance(value, str):
            return value.replace(self._value, "***")
        if isinstance(value, list):
            return [self.removed(one) for one in value]
        if isinstance(value, dict):
            return {self.removed(name): self.removed(one) for name, one in value.items()}
        return value

    def cut(self, text: str, n: int = MAX_REASON) -> str:
        """The first n characters of the text without the key."""
        return self.removed(text)[:n]


def read_key(variable: str, file: Path | None) -> Secret:
    """The key in `file`, which only its owner may read, or else in the environment variable. Empty where there is none.

    Raises ConfigError for a file that others can read or that is none, for a name that no variable has, and for a key
    that is no word of ASCII."""
    if variable and not VARIABLE.fullmatch(variable):  # it is not repeated: a key may stand there
        raise ConfigError("the name of the key's environment variable is none; give a name such as MY_KEY, not the key")
    if file is not None:
        source, value = str(file), _read_private(file)
    else:
        source, value = f"the environment variable {variable}", os.environ.get(variable, "") if variable else ""
    value = value.strip()
    if not all("!" <= character <= "~" for character in value) or len(value) > KEY_BYTES:
        raise ConfigError(f"{source}: not a key (one word of ASCII characters expected); paste the key again")
    return Secret(value)


def _read_private(file: Path) -> str:
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{file}: not a file; give a file that holds the key alone")
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(f"{file}: others can read or own this key; run `chmod 600` on a file of your own")
            return handle.read(KEY_BYTES + 1).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{file}: the key cannot be read ({error.strerror})") from None


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    """names in lower case"""
    body: bytes


class Endpoint:
    """POST of JSON to paths below one URL, from any number of threads.

    `url`: https, or http on a loopback host, with neither user, query nor fragment; without a path, /v1 is added.
    `timeout`: seconds of one try, connection and whole answer included. `retries`: further tries after a time-out, a
    broken connection or a status of RETRIED, after what the server's Retry-After says or `backoff` · 2^n seconds with
    jitter. Longer waits than `max_wait` are refused. Redirects are followed on the same host only.
    """

    def __init__(
        self,
        url: str,
        key: Secret,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        max_wait: float = 120.0,
    ) -> None:
        self.url, self.host, self.loopback = _checked_url(url)
        self.key = key
        self.timeout = check_number(timeout, "timeout", 0.001, 86_400)
        self.retries = int(check_number(retries, "retries", 0, 100))
        self.backoff = check_number(backoff, "backoff", 0, 3600)
        self.max_wait = check_number(max_wait, "max_wait", 0, 86_400)
        self.n_requests = self.n_retries = 0
        self._context = ssl.create_default_context() if self.url.startswith("https:") else None
        self.lock, self._not_before = threading.Lock(), 0.0
        self._active = dict[http.client.HTTPConnection, tuple[list[socket.socket], threading.Event]]()

    def post(
        self,
        path: str,
        body: dict[str, Any],
        stop: threading.Event,
        broken: Callable[[Any], str] = lambda value: "",
    ) -> Any:
        """The JSON that the server answers to `body`, without the key. Waiting ends when `stop` is set. `broken` says
        why an answer is to be asked for again, "" where it is not.

        Raises GenerationError for what the server refuses, for what it never answers, and for what is no JSON."""
        data, reason, wait, code = json.dumps(body).encode(), "", None, None
        for attempt in range(self.retries + 1):
            if attempt:
                self._wait(attempt, wait, reason, code, stop)
            wait = code = None
            try:
                response = self._follow(self.url + path, data, stop)
            except ssl.SSLCertVerificationError as error:
                raise GenerationError(f"{self.url}: its certificate is not valid ({error.verify_message})") from None
            except (OSError, http.client.HTTPException) as error:
                reason = self.key.cut(_why(error, self.timeout))
                continue
            value = self.key.removed(self._parse(response))
            code = response.status if response.status != 200 else code_inside(value)
            if code is None and not (reason := self.key.cut(broken(value))):
                return value
            if code is None:
                continue
            reason = self._refusal(path, response, value, code)
            wait = retry_after(response.headers)
        raise EndpointError(
            f"{self.url}{path}: no answer after {self.retries + 1} tries ({reason}); run again later: what was answered"
            " and recorded is not asked again", status=code, reason=reason, retry_after=wait,
        )  # fmt: skip

    def stream(self, path: str, body: dict[str, Any], stop: threading.Event) -> Iterator[Any]:
        """The JSON of each event that the server sends (text/event-stream), without the key, up to "[DONE]". It is
        asked once. Raises as `post`, and where the stream breaks off."""
        try:
            yield from self._events(path, json.dumps(body).encode(), stop)
        except (OSError, http.client.HTTPException) as error:
            reason = self.key.cut(_why(error, self.timeout))
            raise EndpointError(f"{self.url}{path}: {reason}", reason=reason) from None

    def _events(self, path: str, data: bytes, stop: threading.Event) -> Iterator[Any]:
        with self._exchange(self.url + path, data, stop) as (response, headers):
            if response.status != 200:
                whole = Response(response.status, headers, self._body(response))
                value = self.key.removed(self._parse(whole))
                reason = self._refusal(path, whole, value, whole.status)
                raise EndpointError(
                    f"{self.url}{path}: {reason}", status=whole.status, reason=reason, retry_after=retry_after(headers)
                )
            n = 0
            while line := response.readline(RESPONSE_BYTES.high):
                n += len(line)
                if n > RESPONSE_BYTES.high:
                    raise GenerationError(f"{self.url}: an answer of more than {RESPONSE_BYTES.high:,} bytes")
                name, _, text = line.strip().partition(b":")
                if name == b"data" and (text := text.strip()) == b"[DONE]":
                    return
                if name == b"data":
                    yield self.key.removed(self._parse(Response(200, headers, text)))
        raise EndpointError(f"{self.url}: the stream broke off", reason="the stream broke off")

    def _refusal(self, path: str, response: Response, value: Any, code: int) -> str:
        """What the server says is wrong; EndpointError where asking again does not help."""
        reason = self.key.cut(error_text(value, response.body.decode("utf-8", "replace")))
        if code not in RETRIED or is_permanent(value):
            message = f"{self.url}{path}: HTTP {code}: {reason}{way_out(code, bool(self.key))}"
            raise EndpointError(message, status=code, reason=reason)
        return f"HTTP {code}: {reason}"

    def abort(self, stop: threading.Event | None = None) -> None:
        """Cuts the connections under way, or those of one caller, who named `stop`."""
        with self.lock:
            active = list(self._active.items())
        for connection, (sockets, event) in active:
            if stop is None or event is stop:
                _cut(connection, sockets)

    def _wait(self, attempt: int, wait: float | None, reason: str, code: int | None, stop: threading.Event) -> None:
        """Until the next try; what one thread is told to wait holds for all."""
        if wait is None:
            wait = min(MAX_DELAY, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        elif wait > self.max_wait:
            message = f"{self.url}: asks to wait {wait:,.0f} s ({reason}); run again then"
            raise EndpointError(message, status=code, reason=reason, retry_after=wait)
        else:
            with self.lock:
                self._not_before = max(self._not_before, time.monotonic() + wait)
        with self.lock:
            self.n_retries += 1
        stop.wait(wait)

    def _follow(self, url: str, data: bytes, stop: threading.Event) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            stop.wait(max(0.0, self._not_before - time.monotonic()))
            if stop.is_set():
                raise GenerationError("stopped")
            response = self._send(url, data, stop)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            target = urlsplit(response.headers.get("location", ""))
            here = urlsplit(url)
            if (target.scheme or here.scheme, target.netloc or here.netloc) != (here.scheme, here.netloc):
                raise GenerationError(
                    f"{self.url}: redirects to another host ({shown(self.key.removed(target.netloc))}); the key "
                    "is not sent there: give that URL itself if you trust it"
                )
            url = urlunsplit((here.scheme, here.netloc, target.path or "/", target.query, ""))
        raise GenerationError(f"{self.url}: redirects more than {MAX_REDIRECTS} times; check the URL")

    def _send(self, url: str, data: bytes, stop: threading.Event) -> Response:
        """One try. OSError or HTTPException for what the network does."""
        with self._exchange(url, data, stop) as (response, headers):
            return Response(response.status, headers, self._body(response))

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        body = bytearray()
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > RESPONSE_BYTES.high:
                raise GenerationError(f"{self.url}: an answer of more than {RESPONSE_BYTES.high:,} bytes")
        if (response.getheader("content-length") or str(len(body))) != str(len(body)):
            raise http.client.IncompleteRead(bytes(body))
        return bytes(body)

    @contextlib.contextmanager
    def _exchange(
        self, url: str, data: bytes, stop: threading.Event
    ) -> Iterator[tuple[http.client.HTTPResponse, dict[str, str]]]:
        """The answer, to be read inside, with its headers. OSError or HTTPException for what the network does."""
        with self.lock:
            self.n_requests += 1
        parts, until = urlsplit(url), time.monotonic() + self.timeout
        connection, sockets = self._connection(parts.hostname or "", parts.port), list[socket.socket]()
        # a server that sends a byte now and then would be within every time limit of the socket
        watch = threading.Timer(self.timeout, _cut, [connection, sockets])
        watch.daemon = True
        watch.start()
        with self.lock:
            self._active[connection] = sockets, stop
        try:
            sent = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
            path = urlunsplit(("", "", parts.path, parts.query, ""))
            connection.connect()
            sockets.append(connection.sock)  # the connection forgets it where the answer is its last
            if stop.is_set():  # `abort` came before there was a connection to cut
                raise ConnectionAbortedError
            connection.request("POST", path, data, sent | {"User-Agent": "foundling"} | self.key.header())
            response = connection.getresponse()
            yield response, {name.lower(): value for name, value in response.getheaders()}
            if time.monotonic() >= until:  # an answer without a length ends where it was cut
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            raise TimeoutError if time.monotonic() >= until else error from None
        finally:
            watch.cancel()
            with self.lock:
                del self._active[connection]
            connection.close()

    def _connection(self, host: str, port: int | None) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        proxy = urlsplit(getproxies().get("https", "")) if not self.loopback and not proxy_bypass(host) else None
        if not proxy or not proxy.hostname:
            return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=self._context)
        through = http.client.HTTPSConnection(
            proxy.hostname, proxy.port or 8080, timeout=self.timeout, context=self._context
        )
        through.set_tunnel(host, port or 443)
        return through

    def _parse(self, response: Response) -> Any:
        """The value; None where a refusal has no JSON."""
        try:
            if not is_shallow(response.body):
                raise ValueError
            return json.loads(response.body)
        except ValueError:
            if response.status != 200:
                return None
        kind = self.key.removed(response.headers.get("content-type", "no content type"))
        start = self.key.cut(response.body.decode("utf-8", "replace"), 80)
        raise GenerationError(f"{self.url}: answered no JSON ({shown(kind)}: {shown(start)}); check the URL")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_url(url: str) -> tuple[str, str, bool]:
    """(URL without a slash at its end, host with port, whether it is this machine)"""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"{shown(url)}: not a URL ({error}); expected https://HOST/v1") from None
    if parts.username is not None or parts.query or parts.fragment:  # nothing of it is repeated: a key may be there
        raise ConfigError("the URL holds a user, a query or a fragment; give keys by an environment variable instead")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{shown(url)}: not a URL of a server; expected https://HOST/v1")
    if any(not "!" <= character <= "~" for character in url):
        raise ConfigError(f"{shown(url)}: a URL with spaces or characters outside ASCII; write them as %XX")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"{shown(url)}: http would send key and texts in the clear; use https")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions") or "/v1"
    shown_host = f"[{host}]" if ":" in host else host
    netloc = f"{shown_host}:{port}" if port else shown_host
    return f"{parts.scheme}://{netloc}{path}", netloc, is_loopback(host)


def _cut(connection: http.client.HTTPConnection, sockets: list[socket.socket]) -> None:
    for sock in sockets or filter(None, [connection.sock]):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TLS would let a reading thread fail


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer within {timeout:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke within an answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
