"""Text alone through a morph against the base language model, prompt and decoding: equal, and at the same cost."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.models.decoding import decode_text
from diptych.sequence import Sequence, TextSpan
from paired import measure_ratio, print_table
from routing import build_model

PROMPT, NEW = 128, 16


def measure(*, pairs: int = 9, clock: Callable[[], float] = time.perf_counter) -> list[list[str]]:
    from diptych.backbones.language import build_language_model
    from diptych.config import build_recipe
    from diptych.models.generate import Morph

    model = build_model()
    base = model.text_tower.language_model
    tokenizer = build_byte_tokenizer()
    recipe = build_recipe({"output_dir": "none", "data": {"sources": [{"path": "none"}]}})
    language = build_language_model(base, tokenizer, name="bench")
    morph = Morph(model=model, language=language, autoencoder=None, recipe=recipe)
    ids = torch.randint(3, 250, (1, PROMPT))
    prompt = Sequence((TextSpan(tuple(ids[0].tolist()), (False,) * PROMPT),))
    # An end token may not cut the answer short on one side alone.
    base.generation_config.eos_token_id = None

    @torch.no_grad()
    def base_logits() -> torch.Tensor:
        return base(input_ids=ids).logits

    def base_answer() -> str:
        out = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=[2],
            pad_token_id=2,
        )
        return str(tokenizer.decode(out[0, PROMPT:], skip_special_tokens=True)).strip()

    def morph_answer() -> str:
        return decode_text(model, [prompt], tokenizer=tokenizer, max_new_tokens=NEW)[0]

    difference = float((morph.text_logits(ids) - base_logits()).abs().max())
    if difference or base_answer() != morph_answer():
        raise ValueError(f"the morph's text is not the language model's own: logits differ by {difference}")
    rows = []
    for what, through, directly in (
        (f"logits of {PROMPT} tokens", lambda: morph.text_logits(ids), base_logits),
        (f"{NEW} tokens after {PROMPT}", morph_answer, base_answer),
    ):
        ratio = measure_ratio(through, directly, pairs=pairs, warm=1, clock=clock)
        rows.append([what, f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})", "<= 1.05", "0"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, CPU seconds: for a machine that others load"
    )
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu_time else 2)
    rows = measure(pairs=options.pairs, clock=time.process_time if options.cpu_time else time.perf_counter)
    title = "Text alone, morph / base language model" + (", CPU seconds of one thread" if options.cpu_time else "")
    print_table(title, ["what", "time ratio", "goal", "max abs difference"], rows)


if __name__ == "__main__":
    main()
