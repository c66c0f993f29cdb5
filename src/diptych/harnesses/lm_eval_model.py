"""Text benchmarks by lm-evaluation-harness: `python -m diptych.harnesses.lm_eval_model --model diptych
--model_args morph=PATH --tasks mmlu`, its own command line with one model more.

lm-eval has no entry points for models: a module that is run in place of its own registers what it brings.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

from diptych.harnesses.harness_requests import load_asked


@register_model("diptych")
class LmEvalModel(HFLM):
    """A morph's language model as lm-eval's own Hugging Face model: the very module that `morph.text_logits` asks."""

    def __init__(
        self,
        morph: Any,
        *,
        language_model: str | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """`options`: of HFLM that load nothing, such as batch_size, max_length, add_bos_token, softmax_dtype. Errors:
        as of `load_asked`."""
        self.morph, self.stamp = load_asked(
            morph,
            "writes",
            language_model=language_model,
            trust_remote_code=trust_remote_code,
            device=None if device == "cuda:0" else device,  # what lm-eval says where nobody says anything
        )
        super().__init__(
            pretrained=self.morph.language_model, tokenizer=self.morph.tokenizer, backend="causal", **options
        )
        accelerator = Accelerator()
        if accelerator.num_processes > 1:  # HFLM leaves this out where it is given a model
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the harness's results: what they were made with."""
        return {"diptych": self.stamp}


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
