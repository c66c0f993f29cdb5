"""Laws of images from the web: off by default; https to listed hosts alone; nothing inside a network is reached."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych.data import web_images
from diptych.data.references import WebImage, read_reference
from diptych.data.samples import RecordError
from diptych.data.sources import Source
from diptych.data.web_images import fetch_image, is_global, split_url
from diptych.data_settings import DataConfig, SourceConfig

LOOPBACK = [
    *("127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "0.0.0.0", "0", "2130706433", "0x7f000001", "0x7f.0.0.1"),
    *("0177.0.0.1", "017700000001", "0x7f.1", "127.000.000.001", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]"),
    *("localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost", "①②⑦.⓪.⓪.①"),
]
INSIDE = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "[fd00::1]",
    "[fc00::]",
    "224.0.0.1",
]
GOOD = "images.example.com"


def payloads(port: int) -> list[str]:
    """URLs that one reader or another would take to this machine, or to one inside its network."""
    made = [f"https://{host}:{port}/a.png" for host in LOOPBACK] + [f"https://{host}/a.png" for host in INSIDE]
    made += [f"http://{host}:{port}/a.png" for host in ("127.0.0.1", "localhost", "[::1]", GOOD)]
    for local in (f"127.0.0.1:{port}", f"localhost:{port}"):
        made += [
            f"https://{GOOD}@{local}/a.png",
            f"https://{GOOD}:pass@{local}/a.png",
            f"https://{GOOD}%40{local}/a.png",
            f"https://{local}\\@{GOOD}/a.png",
            f"https://{GOOD}\\@{local}/a.png",
            f"https://{local}#@{GOOD}/a.png",
            f"https://{local}?@{GOOD}/a.png",
            f"https://{GOOD}#@{local}/a.png",
            f"https:\\\\{local}\\a.png",
            f"https:/{local}/a.png",
            f"https:///{local}/a.png",
            f"https:{local}/a.png",
            f"https:// {local}/a.png",
            f"https://\t{local}/a.png",
            f"https://{GOOD}\r\nHost: {local}/a.png",
            f"https://{GOOD}\x00{local}/a.png",
            f" https://{local}/a.png",
            f"//{local}/a.png",
            f"HTTPS://{local}/a.png",
            f"ftp://{local}/a.png",
            f"gopher://{local}/a.png",
            f"https+unix://{local}/a.png",
            f"https://[{local}]/a.png",
            f"https://{GOOD}:{port}/a.png",
        ]
    made += [f"https://{GOOD}.:443/a.png", f"https://-{GOOD}/a.png", f"https://{GOOD}/ä.png", f"https://{GOOD}/a b.png"]
    return made


@pytest.fixture
def canary() -> Iterator[tuple[int, list[str]]]:
    """A server on this machine, and what it was asked for."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"secret")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1], hits
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_url_reaches_this_machine_or_its_network(
    canary: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with its own host on the list, and with a name server that leads every name here."""
    port, hits = canary
    connected: list[Any] = []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    )
    monkeypatch.setattr(socket, "create_connection", lambda *args, **_: connected.append(args))
    urls = payloads(port)
    assert len(set(urls)) >= 80
    hosts = (GOOD, "localhost", "127.0.0.1", "::1", "[::1]", *LOOPBACK, *INSIDE)
    for url in urls:
        with pytest.raises(ValueError, match="image"):
            fetch_image(url, allowed_hosts=hosts)
        with pytest.raises(ValueError, match="image"):
            read_reference(WebImage(url, allowed_hosts=hosts))
        with pytest.raises(ValueError, match=r"image|embedded null"):
            read_reference(url)
    assert hits == connected == []


@pytest.mark.parametrize("allowed", [False, (GOOD,)])
def test_a_record_with_such_a_url_is_a_bad_record(tmp_path: Path, canary: tuple[int, list[str]], allowed: Any) -> None:
    port, hits = canary
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for url in payloads(port):
            parts = [{"type": "image_url", "image_url": {"url": url}}]
            file.write(json.dumps({"messages": [{"role": "user", "content": parts}]}) + "\n")
    config = SourceConfig(path=str(path))
    source = Source(config, DataConfig(sources=(config,), allow_urls=allowed))
    for number in range(len(source)):
        with pytest.raises(RecordError) as caught:
            source[number]
        assert caught.value.kind in ("image path", "missing image")
    assert hits == []


def test_urls_are_off_unless_a_host_is_listed(tmp_path: Path) -> None:
    url = f"https://{GOOD}/a.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
    config = SourceConfig(path=str(tmp_path / "a.jsonl"))
    with pytest.raises(RecordError, match=r"is on the web; list its host in data\.allow_urls"):
        Source(config, DataConfig(sources=(config,)))[0]
    (image,) = Source(config, DataConfig(sources=(config,), allow_urls=(GOOD,)))[0].images
    assert isinstance(image, WebImage)
    with pytest.raises(RecordError, match="none of the hosts"):
        Source(config, DataConfig(sources=(config,), allow_urls=("other.example.com",)))[0]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::",
        "ff02::1",
        "0.0.0.0",
        "255.255.255.255",
        "fe80::1%eth0",
        "fc00::1",
        "100.64.1.1",
        "192.0.2.1",
        "2001::1",
        "::",
        "fec0::1",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:8.8.8.8",
        "no address",
    ],
)
def test_such_addresses_are_not_global(address: str) -> None:
    assert not is_global(address)


def test_public_addresses_are_global() -> None:
    assert is_global("8.8.8.8")
    assert is_global("2606:4700:4700::1111")


class _Answer:
    """A server behind the pinned address: `connect` is what the fetch opens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
        self.addresses = iter([["8.8.8.8"], ["127.0.0.1"]])
        self.resolved = 0
        self.held: list[socket.socket] = []
        self.connected: list[tuple[str, str]] = []
        self.answer = answer
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)
        monkeypatch.setattr(web_images, "open_connection", self.connect)

    def close(self) -> None:
        for sock in self.held:
            sock.close()

    def resolve(self, *_: Any, **__: Any) -> list[Any]:
        self.resolved += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in next(self.addresses)]

    def connect(self, address: str, host: str, timeout: float) -> socket.socket:
        assert 0 < timeout <= web_images.TIMEOUT_SECONDS
        self.connected.append((address, host))
        ours, theirs = socket.socketpair()
        theirs.sendall(self.answer)
        theirs.shutdown(socket.SHUT_WR)
        self.held.append(theirs)
        return ours


def test_a_name_is_resolved_once_and_its_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Answer(monkeypatch, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    assert fetch_image(f"https://{GOOD}/a.png?x=1", allowed_hosts=(GOOD,)) == b"abc"
    server.close()
    assert server.resolved == 1
    assert server.connected == [("8.8.8.8", GOOD)]


def test_one_private_address_among_several_refuses_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Answer(monkeypatch, b"")
    server.addresses = iter([["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(ValueError, match=r"leads to 10\.0\.0\.1"):
        fetch_image(f"https://{GOOD}/a.png", allowed_hosts=(GOOD,))
    assert server.connected == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "redirects"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "more than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, "more than the 1,000"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nx", "cut off|cannot be fetched"),
        (b"nonsense\r\n\r\n", "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
def test_other_answers_are_refused(monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str) -> None:
    monkeypatch.setattr(web_images, "MAX_FETCHED_BYTES", 1000)
    server = _Answer(monkeypatch, answer)
    with pytest.raises(ValueError, match=words):
        fetch_image(f"https://{GOOD}/a.png", allowed_hosts=(GOOD,))
    server.close()
    assert len(server.connected) == 1


@pytest.mark.parametrize("trickled", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\n\r\nbody"])
def test_a_server_that_trickles_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch, trickled: bytes) -> None:
    monkeypatch.setattr(web_images, "TIMEOUT_SECONDS", 0.5)
    server = _Answer(monkeypatch, trickled)
    stop = threading.Event()

    def connect(address: str, host: str, timeout: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        server.held.append(theirs)

        def trickle() -> None:
            theirs.sendall(trickled)
            while not stop.wait(0.1):
                try:
                    theirs.sendall(b"a")
                except OSError:
                    return

        threads.append(threading.Thread(target=trickle))
        threads[0].start()
        return ours

    threads: list[threading.Thread] = []
    monkeypatch.setattr(web_images, "open_connection", connect)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"took more than 0\.5 s|timed out"):
        fetch_image(f"https://{GOOD}/a.png", allowed_hosts=(GOOD,))
    assert time.monotonic() - started < 2
    stop.set()
    threads[0].join()
    server.close()


def test_a_name_that_is_not_answered_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "TIMEOUT_SECONDS", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(5) and [])
    with pytest.raises(ValueError, match=r"took more than 0\.2 s"):
        fetch_image(f"https://{GOOD}/a.png", allowed_hosts=(GOOD,))
    answered.set()


def test_a_plain_url_is_split() -> None:
    assert split_url("https://Images.Example.com:443/a/b.png?c=d&e=%20", ["images.example.com"]) == (
        GOOD,
        "/a/b.png?c=d&e=%20",
    )
