"""Images from the web: off unless the recipe lists hosts, by https alone, and never from an address inside a network.

A name is resolved once, and the connection goes to the address that was looked at, so that a second answer (DNS
rebinding) changes nothing. A redirect is an error: where it leads was not allowed by anybody.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from diptych.data.references import MAX_IMAGE_BYTES

TIMEOUT_SECONDS = 20.0
"""For a whole fetch, not for each of its reads: a server that trickles is given up too."""
MAX_FETCHED_BYTES = min(50_000_000, MAX_IMAGE_BYTES)
_URL = re.compile(r"https://(?P<host>[A-Za-z0-9.-]{1,253})(?::443)?(?P<path>/[!-\[\]-~]*)?")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])")


def split_url(url: str, allowed_hosts: Sequence[str]) -> tuple[str, str]:
    """(host, path) of an image's URL. Raises ValueError unless it is plain https to one of `allowed_hosts`.

    Plain: a name with a dot whose last part is letters (so no number in any notation), no user, no port but 443, no
    backslash, space or control character, printable ASCII alone. What else a URL may be, browsers and libraries read in
    different ways.
    """
    found = _URL.fullmatch(url)
    host = found["host"].lower() if found is not None else ""
    if found is None or _HOST.fullmatch(host) is None:
        raise ValueError(f"image URL {url[:200]!r} must be https://HOST/PATH with a plain host name and nothing else")
    if host not in {allowed.lower() for allowed in allowed_hosts}:
        raise ValueError(f"image URL {url[:200]!r}: {host} is none of the hosts that data.allow_urls lists")
    return host, found["path"] or "/"


def fetch_image(url: str, *, allowed_hosts: Sequence[str]) -> bytes:
    """The bytes behind an image's URL. Raises ValueError that names it: not allowed (`split_url`), an address that is
    not global, a redirect or another status than 200, more than MAX_FETCHED_BYTES, more than TIMEOUT_SECONDS."""
    host, path = split_url(url, allowed_hosts)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        address = _global_address(host, deadline)
        connection = _PinnedConnection(host, address, deadline)
        try:
            connection.request(
                "GET", path.partition("#")[0], headers={"Accept": "image/*", "Accept-Encoding": "identity"}
            )
            return _read_body(connection.getresponse())
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ValueError(f"image URL {url[:200]!r} cannot be fetched: {error or type(error).__name__}") from error
    except _RefusedError as error:
        raise ValueError(f"image URL {url[:200]!r} {error}") from None


class _RefusedError(Exception):
    pass


class _PinnedConnection(http.client.HTTPSConnection):
    """https to one address, whose certificate must be the host's."""

    def __init__(self, host: str, address: str, deadline: float) -> None:
        super().__init__(host, 443, timeout=_left(deadline), context=ssl.create_default_context())
        self._address, self._deadline = address, deadline

    def connect(self) -> None:
        opened = open_connection(self._address, self.host, _left(self._deadline))
        self.sock = cast(Any, _TimedSocket(opened, self._deadline))


class _TimedSocket:
    """What http.client needs of a socket, each step of which has only the time that is left: a socket's own timeout
    begins anew with every byte."""

    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = opened, deadline
        self.close = opened.close

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))


class _TimedReader(io.RawIOBase):
    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = opened, deadline
        self._file = opened.makefile("rb", buffering=0)  # keeps the socket open for as long as it is

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_connection(address: str, host: str, timeout: float) -> socket.socket:
    """A TLS connection to `address`, which must prove to be `host`."""
    deadline = time.monotonic() + timeout
    plain = socket.create_connection((address, 443), timeout=timeout)
    try:
        plain.settimeout(_left(deadline))
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _global_address(host: str, deadline: float) -> str:
    """The address that a name has. If any one of several is inside a network, none is taken."""
    found = _resolve(host, deadline)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_global(address):
            raise _RefusedError(f"leads to {address}, which is no public address")
    if not addresses:
        raise _RefusedError("leads nowhere")
    return addresses[0]


def _resolve(host: str, deadline: float) -> list[Any]:
    """Looked up by a thread, which is left behind where the deadline comes first: the system's look-up has none."""
    answer: queue.Queue[list[Any] | Exception] = queue.Queue()
    look_up = socket.getaddrinfo

    def ask() -> None:
        try:
            answer.put(list(look_up(host, 443, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True, name=f"look up {host}").start()
    try:
        found = answer.get(timeout=_left(deadline))
    except queue.Empty:
        raise _RefusedError(f"took more than {TIMEOUT_SECONDS:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def is_global(address: str) -> bool:
    """Whether an address is public: not private, loopback, link-local, multicast or reserved, and none of these behind
    an IPv6 address that stands for an IPv4 one (mapped, 6to4, Teredo, NAT64, ISATAP)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None or parsed.sixtofour is not None or parsed.teredo is not None:
            return False
        if any(parsed in network for network in _TRANSLATED) or parsed.is_site_local:
            return False
        if int(parsed) >> 32 & 0xFDFFFFFF == 0x5EFE:  # ISATAP: ...:0:5efe:a.b.c.d, or 200:5efe
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved and not parsed.is_unspecified


_TRANSLATED = tuple(ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _RefusedError(f"took more than {TIMEOUT_SECONDS:g} s")
    return left


def _read_body(response: http.client.HTTPResponse) -> bytes:
    if response.status != 200:
        what = "redirects" if 300 <= response.status < 400 else "answers"
        raise _RefusedError(f"{what} with status {response.status}; give the image's own URL")
    if response.length is not None and response.length > MAX_FETCHED_BYTES:
        raise _RefusedError(f"has {response.length:,} bytes, more than the {MAX_FETCHED_BYTES:,} that are fetched")
    pieces: list[bytes] = []
    size = 0
    while True:
        piece = response.read1(65_536)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > MAX_FETCHED_BYTES:
            raise _RefusedError(f"has more than the {MAX_FETCHED_BYTES:,} bytes that are fetched")
    if response.length:
        raise _RefusedError("was cut off")
    return b"".join(pieces)
