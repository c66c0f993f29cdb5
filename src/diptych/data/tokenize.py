"""From a sample to a sequence: the chat template, where the loss lies, and where each image stands."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from torch import Tensor

from diptych.data.samples import Message, RecordError, Sample
from diptych.sequence import ImageSpan, Sequence, TextSpan

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '\\n' }}{% endfor %}"
    ),
}
"""`chatml` without a system prompt; `plain` has no roles at all. `auto` is the tokenizer's own."""

_OPEN, _CLOSE, _IMAGE = "\ue000", "\ue001", "\ue002"
_MARKS = str.maketrans("", "", _OPEN + _CLOSE + _IMAGE)


def drop_text(messages: Many[Message]) -> tuple[Message, ...]:
    """The unconditional form of a conversation (classifier-free guidance): no text in the user's turns, images kept."""
    return _keep(messages, lambda part: isinstance(part, int))


def drop_images(messages: Many[Message], *, targets: Collection[int] = ()) -> tuple[Message, ...]:
    """The conversation without the images of the user's turns, but for `targets`."""
    return _keep(messages, lambda part: isinstance(part, str) or part in targets)


def _keep(messages: Many[Message], is_kept: Callable[[str | int], bool]) -> tuple[Message, ...]:
    """Of all turns but the assistant's, some of the parts: texts, indices of images."""
    return tuple(
        message
        if message.role == "assistant"
        else Message(message.role, tuple(part for part in message.parts if is_kept(part)), message.loss)
        for message in messages
    )


def build_sequence(
    sample: Sample,
    *,
    tokenizer: Any,
    template: str,
    load_image: Callable[[str], Tensor],
    num_image_tokens: int,
    draw: int = 0,
    unconditional: bool = False,
    without_images: bool = False,
    max_length: int | None = None,
    boundary_ids: tuple[int, int] | None = None,
) -> Sequence:
    """A training sequence. The assistant's text carries loss, its images are targets; all else is context, unless the
    sample's messages or `image_roles` say otherwise.

    X-Fusion (no `boundary_ids`): a target image that later tokens read is followed by a clean copy, since nobody but
    itself may see its noise. VPiT: every image stands between its two boundary tokens, which carry loss as it does.
    Raises RecordError if nothing is supervised ("no loss"), or the sequence is longer than `max_length` tokens ("too
    long").
    """
    targets = sample.target_images()
    messages = drop_text(sample.messages) if unconditional else sample.messages
    if without_images:
        messages = drop_images(messages, targets=targets)
    regions = _render(messages, tokenizer, template, image_predicts_text=boundary_ids is not None)
    spans: list[TextSpan | ImageSpan] = []
    for region in regions:
        if isinstance(region, int):
            source = sample.images[region]
            spans.append(ImageSpan(load_image(source), num_image_tokens, region in targets, source))
        else:
            spans.append(region)
    if boundary_ids is not None:
        spans = _trim(_add_boundaries(spans, boundary_ids))
    else:
        spans = _add_clean_copies(_trim(spans))
    if not _carries_loss(spans, image_predicts_text=boundary_ids is not None):
        raise RecordError(
            "no loss",
            "nothing in this sample is learnt: it has no assistant turn with an image, or with text that something "
            "stands before",
        )
    sequence = Sequence(tuple(spans), draw=draw)
    if max_length is not None and len(sequence) > max_length:
        raise RecordError("too long", f"this sample has {len(sequence)} tokens, more than data.max_length {max_length}")
    return sequence


def _carries_loss(spans: Many[TextSpan | ImageSpan], *, image_predicts_text: bool) -> bool:
    """Whether anything is learnt. A token is by the one before it: never the first, behind an image in VPiT alone."""
    predicts = False
    for span in spans:
        if isinstance(span, ImageSpan):
            if span.is_target:
                return True
            predicts = image_predicts_text
        elif any(span.loss[1:]) or (predicts and any(span.loss)):
            return True
        else:
            predicts = predicts or len(span) > 0
    return False


def build_prompt(
    messages: Many[Message],
    images: Many[Tensor],
    *,
    tokenizer: Any,
    template: str,
    num_image_tokens: int,
    then: ImageSpan | None = None,
    boundary_ids: tuple[int, int] | None = None,
) -> Sequence:
    """A conversation up to the assistant's next word (`then` None) or next image (`then`): every image is context."""
    spans: list[TextSpan | ImageSpan] = []
    for region in _render(messages, tokenizer, template, generation_prompt=True):
        if isinstance(region, int):
            spans.append(ImageSpan(images[region], num_image_tokens, is_target=False))
        else:
            spans.append(TextSpan(region.token_ids, (False,) * len(region)))
    if boundary_ids is not None:
        spans = _add_boundaries(spans, boundary_ids)
    if then is not None:
        spans.append(then)
    return Sequence(tuple(spans))


def _render(
    messages: Many[Message],
    tokenizer: Any,
    template: str,
    *,
    generation_prompt: bool = False,
    image_predicts_text: bool = False,
) -> list[TextSpan | int]:
    """Text spans with loss flags, and indices of images, in order.

    image_predicts_text: the end of a turn is learnt behind an image too, not behind text alone.
    """
    contents: list[dict[str, str]] = []
    queue: list[int] = []
    for message in messages:
        pieces = []
        for part in message.parts:
            if isinstance(part, int):
                queue.append(part)
                pieces.append(_IMAGE)
            else:
                pieces.append(part.translate(_MARKS))
        contents.append({"role": message.role, "content": _OPEN + "".join(pieces) + _CLOSE})
    if template == "auto":
        if not tokenizer.chat_template:
            raise ValueError("this tokenizer has no chat template; set template: chatml or plain in the recipe")
        chosen = None
    else:
        chosen = TEMPLATES[template]
    text = tokenizer.apply_chat_template(
        contents, tokenize=False, add_generation_prompt=generation_prompt, chat_template=chosen
    )
    if text.count(_OPEN) != len(contents) or text.count(_IMAGE) != len(queue):
        raise ValueError(
            f"the chat template kept {text.count(_OPEN)} of {len(contents)} messages and {text.count(_IMAGE)} of "
            f"{len(queue)} images; set template: chatml or plain in the recipe"
        )
    return _split(text, messages, queue, tokenizer, image_predicts_text)


def _split(
    text: str, messages: Many[Message], queue: list[int], tokenizer: Any, image_predicts_text: bool
) -> list[TextSpan | int]:
    special = set(tokenizer.all_special_ids)
    regions: list[TextSpan | int] = []
    pending, loss, inside, ends_turn = "", False, -1, False
    images = iter(queue)

    def flush() -> None:
        nonlocal pending, ends_turn
        if pending:
            ids = tuple(tokenizer(pending, add_special_tokens=False)["input_ids"])
            flags = [loss] * len(ids)
            if ends_turn:
                stop = next((i for i, token in enumerate(ids) if token in special), -1)
                flags[: stop + 1] = [True] * (stop + 1)
            if ids:
                regions.append(TextSpan(ids, tuple(flags)))
        pending, ends_turn = "", False

    for character in text:
        if character == _OPEN:
            inside += 1
            message = messages[inside]
            if message.is_learnt != loss or ends_turn:
                flush()
            loss = message.is_learnt
        elif character == _CLOSE:
            message = messages[inside]
            if loss:
                flush()
                ends_turn = bool(message.parts) and (image_predicts_text or isinstance(message.parts[-1], str))
            loss = False
        elif character == _IMAGE:
            flush()
            regions.append(next(images))
        else:
            pending += character
    flush()
    return regions


def _trim(spans: list[TextSpan | ImageSpan]) -> list[TextSpan | ImageSpan]:
    """Drops what stands behind the last image and the last supervised token: nothing depends on it."""
    while spans:
        last = spans[-1]
        if isinstance(last, ImageSpan):
            break
        keep = max((i + 1 for i, flag in enumerate(last.loss) if flag), default=0)
        if keep:
            spans[-1] = TextSpan(last.token_ids[:keep], last.loss[:keep])
            break
        spans.pop()
    return spans


def _add_clean_copies(spans: list[TextSpan | ImageSpan]) -> list[TextSpan | ImageSpan]:
    out: list[TextSpan | ImageSpan] = []
    for index, span in enumerate(spans):
        out.append(span)
        if isinstance(span, ImageSpan) and span.is_target and index + 1 < len(spans):
            out.append(replace(span, is_target=False, is_copy=True))
    return out


def _add_boundaries(spans: list[TextSpan | ImageSpan], boundary_ids: tuple[int, int]) -> list[TextSpan | ImageSpan]:
    """Each image between `<image_start>` and `<image_end>`, supervised where the image is a target.

    Raises ValueError for text that spells one of the two: it would be an image without its visual tokens.
    """
    start, end = boundary_ids
    if any(isinstance(span, TextSpan) and not {start, end}.isdisjoint(span.token_ids) for span in spans):
        raise ValueError(
            "the text spells a boundary token (vpit.image_start or vpit.image_end), which only an image may bring; "
            "leave it out, or name other boundary tokens"
        )
    out: list[TextSpan | ImageSpan] = []
    for span in spans:
        if isinstance(span, ImageSpan):
            out += [TextSpan((start,), (span.is_target,)), span, TextSpan((end,), (span.is_target,))]
        else:
            out.append(span)
    return out
