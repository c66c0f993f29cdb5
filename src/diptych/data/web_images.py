"""Images from the web: off unless the recipe lists hosts, by https alone, and never from an address inside a network.

A name is resolved once, and the connection goes to the address that was looked at, so that a second answer (DNS
rebinding) changes nothing. A redirect is an error: where it leads was not allowed by anybody.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Sequence

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
        address = _global_address(host)
        connection = _PinnedConnection(host, address, deadline)
        try:
            connection.request(
                "GET", path.partition("#")[0], headers={"Accept": "image/*", "Accept-Encoding": "identity"}
            )
            return _read_body(connection.getresponse(), connection, deadline)
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
        self.sock = open_connection(self._address, self.host, _left(self._deadline))


def open_connection(address: str, host: str, timeout: float) -> socket.socket:
    """A TLS connection to `address`, which must prove to be `host`."""
    plain = socket.create_connection((address, 443), timeout=timeout)
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _global_address(host: str) -> str:
    """The address that a name has. If any one of several is inside a network, none is taken."""
    found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_global(address):
            raise _RefusedError(f"leads to {address}, which is no public address")
    if not addresses:
        raise _RefusedError("leads nowhere")
    return addresses[0]


def is_global(address: str) -> bool:
    """Whether an address is public: not private, loopback, link-local, multicast or reserved, and none of these behind
    an IPv6 address that stands for an IPv4 one (mapped, 6to4, Teredo, NAT64)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None or parsed.sixtofour is not None or parsed.teredo is not None:
            return False
        if any(parsed in network for network in _TRANSLATED):
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved and not parsed.is_unspecified


_TRANSLATED = tuple(ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _RefusedError(f"took more than {TIMEOUT_SECONDS:g} s")
    return left


def _read_body(response: http.client.HTTPResponse, connection: _PinnedConnection, deadline: float) -> bytes:
    if response.status != 200:
        what = "redirects" if 300 <= response.status < 400 else "answers"
        raise _RefusedError(f"{what} with status {response.status}; give the image's own URL")
    if response.length is not None and response.length > MAX_FETCHED_BYTES:
        raise _RefusedError(f"has {response.length:,} bytes, more than the {MAX_FETCHED_BYTES:,} that are fetched")
    pieces: list[bytes] = []
    size = 0
    while True:
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        _left(deadline)
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
