"""How lmms-eval knows diptych: the answer to its entry point `lmms_eval.models`. Light, and importable without it."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval's `ModelManifest` of the model `diptych`; the class itself is imported when it is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest("diptych", chat_class_path="diptych.harnesses.lmms_eval_model.LmmsEvalModel")
