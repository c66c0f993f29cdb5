"""Laws of what is fetched from the Hub: it is asked once, and what was fetched before is there without a network."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from diptych.backbones import hub_loading
from diptych.backbones.hub_loading import fetch_file
from diptych.backbones.skeletons import build_encoder_skeleton


def test_a_name_that_nobody_knows_is_refused_at_once_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def unreachable(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(ValueError, match=r"image encoder 'someone/some-vit' is in no folder here and could not be"):
        build_encoder_skeleton("someone/some-vit")
    assert len(asked) <= 2, "the client's own six tries, with growing pauses, take half a minute"


def test_a_misspelt_name_is_told_the_one_it_is_like() -> None:
    with pytest.raises(ValueError, match="did you mean 'vit-s14-focus'"):
        build_encoder_skeleton("vit-s14-focal")


def _hub(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[bool]:
    """A Hub that answers with this error or none; whether each file was then wanted from the local cache alone."""
    wanted: list[bool] = []

    def answer(self: Any, name: str, *, timeout: float) -> None:
        assert timeout == hub_loading.ANSWER_SECONDS
        if error is not None:
            raise error

    def download(name: str, path: str, *, local_files_only: bool = False) -> str:
        wanted.append(local_files_only)
        return f"/cache/{name}/{path}"

    monkeypatch.setattr(hub_loading.HfApi, "model_info", answer)
    monkeypatch.setattr(hub_loading, "hf_hub_download", download)
    return wanted


def test_where_the_hub_answers_the_file_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _hub(monkeypatch, None)
    assert fetch_file("a/b", "config.json") == Path("/cache/a/b/config.json")
    assert wanted == [False]


class ConnectError(Exception):
    """As the Hub's client raises it, whichever httpx it is built on."""

    __module__ = "httpx2"


@pytest.mark.parametrize("error", [ConnectError("no network"), OSError("offline")])
def test_without_an_answer_it_is_what_was_fetched_before(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    wanted = _hub(monkeypatch, error)
    assert fetch_file("a/b", "config.json") == Path("/cache/a/b/config.json")
    assert wanted == [True]


def test_a_repository_that_is_not_there_is_not_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    wanted = _hub(monkeypatch, RepositoryNotFoundError("404", response=response))
    with pytest.raises(RepositoryNotFoundError):
        fetch_file("a/b", "config.json")
    assert wanted == []
