"""Benchmarks on images by VLMEvalKit: a class with the interface of its `vlmeval.vlm.base.BaseModel`.

VLMEvalKit is no package of an index and has no entry points: docs/harnesses.md says how its `run.py` is given this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych.harnesses.harness_requests import Request, answer_requests, load_asked, read_part


class VlmEvalKitModel:
    """A morph as VLMEvalKit's model. Of clips the harness itself takes the frames (`nframe` of its data sets)."""

    is_api = False
    INTERLEAVE = True
    VIDEO_LLM = False

    def __init__(
        self,
        morph: Any,
        *,
        max_new_tokens: int = 128,
        num_frames: int = 8,
        language_model: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`num_frames`: of a clip that is given as a file all the same. Errors: as of `load_asked`."""
        self.morph, self.stamp = load_asked(
            morph, "reads", language_model=language_model, trust_remote_code=trust_remote_code
        )
        self.max_new_tokens, self.num_frames = max_new_tokens, num_frames

    def generate(self, message: str | Sequence[str | Mapping[str, str]], dataset: str | None = None) -> str:
        """The greedy answer. `message`: a text, or texts and images in their order, as {"type", "value"} or as a text
        or the path of an image. `dataset` changes nothing: every data set keeps the harness's own prompt."""
        del dataset
        content: list[Any] = []
        for part in [message] if isinstance(message, str) else message:
            content += (
                [part] if isinstance(part, str) else read_part(part["type"], part["value"], num_frames=self.num_frames)
            )
        request = Request(lambda: [{"role": "user", "content": content}], {}, 0)
        return answer_requests(self.morph, [request], batch_size=1, max_new_tokens=self.max_new_tokens)[0]

    def use_custom_prompt(self, dataset: str) -> bool:
        del dataset
        return False

    def set_dump_image(self, dump_image: Callable[..., Any]) -> None:
        """The harness offers how it would write a question's images; its own prompts hold their paths already."""
