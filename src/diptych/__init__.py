"""Diptych: a pretrained text LLM that reads and draws images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_morph"]

if TYPE_CHECKING:
    from diptych.models.checkpoint import load_morph


def __getattr__(name: str) -> Any:
    if name == "load_morph":
        from diptych.models.checkpoint import load_morph

        return load_morph
    raise AttributeError(f"module 'diptych' has no attribute {name!r}")
