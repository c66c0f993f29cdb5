"""What holds for every test: one thread, fixed seeds, no network, and an honest word about assets that are missing."""

from __future__ import annotations

import os
import random
import socket
from typing import Any

# Before torch is imported, and inherited by the commands that tests start.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}.items():
    os.environ[_name] = _value

import numpy  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("diptych", deadline=None, derandomize=True)
settings.load_profile("diptych")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine's own addresses answer: a test that reaches for a hub fails at once."""
    connect = socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        if not (host in ("localhost", "::1") or str(host).startswith("127.")):
            raise OSError(f"tests have no network, and this one reached for {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests whose assets are not in the cache; `make test` fetches them first and allows no skip."""
    marked = [(item, marker) for item in items if (marker := item.get_closest_marker("assets")) is not None]
    if not marked or os.environ.get("DIPTYCH_REQUIRE_ASSETS") == "1":
        return
    from diptych.backbones.assets import find_asset
    from diptych.commands.asset_commands import DEFAULT_ASSETS

    fetched = {name: find_asset(name).is_fetched for name in DEFAULT_ASSETS}
    for item, marker in marked:
        needed = marker.args or DEFAULT_ASSETS
        lacking = [name for name in needed if not fetched.setdefault(name, find_asset(name).is_fetched)]
        if lacking:
            remedy = f"say `diptych assets fetch {' '.join(lacking)}`"
            item.add_marker(pytest.mark.skip(reason=f"not in the asset cache: {', '.join(lacking)}; {remedy}"))
