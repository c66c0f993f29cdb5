"""Benchmarks on images and clips by lmms-eval: `python -m lmms_eval --model diptych --model_args morph=PATH`.

Known to lmms-eval by the entry point that `lmms_eval_plugin.py` answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from diptych.harnesses.harness_requests import Request, answer_requests, load_asked, read_part
from diptych.models.conversation import Conversation


class LmmsEvalModel(lmms):
    """A morph as lmms-eval's chat model: a task says where in the text its images stand."""

    is_simple = False

    def __init__(
        self,
        morph: Any,
        *,
        batch_size: int | str = 1,
        num_frames: int = 8,
        max_new_tokens: int = 128,
        language_model: str | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        stamp: str | None = None,
    ) -> None:
        """`num_frames`: of each clip, spread evenly. `max_new_tokens`: where a task says none. `stamp`: a JSON file to
        write, which says what the scores are made with. Errors: as of `load_asked`."""
        super().__init__()
        if not str(batch_size).isdigit() or min(int(batch_size), num_frames) < 1:
            raise ValueError(f"batch_size {batch_size!r} and num_frames {num_frames!r} must be numbers from 1 up")
        self.morph, self.stamp = load_asked(
            morph, "reads", language_model=language_model, trust_remote_code=trust_remote_code, device=device
        )
        self.batch_size, self.num_frames, self.max_new_tokens = int(batch_size), num_frames, max_new_tokens
        self.stamp |= {
            "harness": f"lmms-eval {_version()}",
            "num_frames": num_frames,
            "max_new_tokens": max_new_tokens,
            "batch_size": self.batch_size,
        }
        if stamp is not None:
            Path(stamp).write_text(json.dumps(self.stamp, indent=2) + "\n", encoding="utf-8")

    @property
    def device(self) -> Any:
        return self.morph.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request. One that comes several times (`repeats`) is sampled anew each time."""
        asked, times = [], Counter[int]()
        for request in requests:
            text, doc_to_messages, settings, doc_id, task, split = request.args
            conversation = partial(self._conversation, doc_to_messages, task, split, doc_id)
            asked.append(Request(conversation, settings, len(text), seed=times[id(request)]))
            times[id(request)] += 1
        with tqdm(total=len(asked), desc="diptych", disable=self.rank != 0) as bar:
            return answer_requests(
                self.morph,
                asked,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                on_answers=bar.update,
            )

    def _conversation(self, doc_to_messages: Any, task: str, split: str, doc_id: int) -> Conversation:
        return read_messages(doc_to_messages(self.task_dict[task][split][doc_id]), num_frames=self.num_frames)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        raise ValueError(
            "diptych answers lmms-eval in words alone; take the task that generates (seedbench, not seedbench_ppl), "
            "and for text the other harness (python -m diptych.harnesses.lm_eval_model)"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        raise ValueError("diptych answers each question once; leave out the tasks of several rounds")


def _version() -> str:
    try:
        return version("lmms_eval")
    except PackageNotFoundError:  # a checkout that is not installed
        return "of unknown version"


def read_messages(messages: Iterable[Mapping[str, Any]], *, num_frames: int) -> Conversation:
    """lmms-eval's messages as a conversation: parts {"type": "text", "text"} and {"type": "image" | "video", "url"}."""
    return [
        {
            "role": message["role"],
            "content": [
                read
                for part in message["content"]
                for read in read_part(
                    part["type"], part["text" if part["type"] == "text" else "url"], num_frames=num_frames
                )
            ],
        }
        for message in messages
    ]
