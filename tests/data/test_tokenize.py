"""Laws of turning a sample into a sequence: who is supervised, where images stand, what is trimmed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.data.samples import Message, RecordError, Sample
from diptych.data.tokenize import build_prompt, build_sequence, drop_text
from diptych.sequence import ImageSpan, Sequence, TextSpan, pack

TOKENIZER = build_byte_tokenizer()
TOKENS = 4


def _load(path: str) -> Tensor:
    return torch.full((1, 2, 2), float(path))


def _sequence(*messages: Message, template: str = "chatml", **options: object) -> Sequence:
    images = tuple(str(number) for number in range(9))
    return build_sequence(
        Sample(messages=messages, images=images, meta={}),
        tokenizer=TOKENIZER,
        template=template,
        load_image=_load,
        num_image_tokens=TOKENS,
        **options,  # type: ignore[arg-type]
    )


def _told(sequence: Sequence, *, supervised: bool | None = None) -> str:
    """The text, images as [number] (targets as {number}); only tokens with (or without) loss if asked."""
    out = ""
    for span in sequence.spans:
        if isinstance(span, TextSpan):
            ids = [
                t for t, flag in zip(span.token_ids, span.loss, strict=True) if supervised is None or flag == supervised
            ]
            out += str(TOKENIZER.decode(ids))
        elif supervised is None:
            number = int(span.image.flatten()[0])
            out += f"{{{number}}}" if span.is_target else f"[{number}]"
    return out


def user(*parts: str | int, loss: bool | None = None) -> Message:
    return Message("user", parts, loss)


def assistant(*parts: str | int, loss: bool | None = None) -> Message:
    return Message("assistant", parts, loss)


@pytest.mark.parametrize("template", ["chatml", "auto"])
def test_the_assistants_text_and_its_end_token_are_supervised_and_nothing_else(template: str) -> None:
    sequence = _sequence(user("hi"), assistant("yes"), user("and"), assistant("no"), template=template)
    assert _told(sequence, supervised=True) == "yes<|im_end|>no<|im_end|>"
    assert _told(sequence) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\nno<|im_end|>"
    )


def test_the_plain_template_supervises_the_answer_and_its_end() -> None:
    sequence = _sequence(user("hi"), assistant("yes"), template="plain")
    assert _told(sequence) == "hi\nyes<|im_end|>"
    assert _told(sequence, supervised=True) == "yes<|im_end|>"


def test_images_stand_where_their_placeholders_stood_in_order() -> None:
    sequence = _sequence(user("a", 0, "b", 1), assistant("c", 2))
    assert _told(sequence).replace("<|im_end|>\n", "|").replace("<|im_start|>", "") == "user\na[0]b[1]|assistant\nc{2}"
    assert all(span.num_tokens == TOKENS for span in sequence.images)


def test_an_image_in_an_answer_is_a_target_and_in_a_question_context_unless_the_message_says_otherwise() -> None:
    assert [s.is_target for s in _sequence(user(0), assistant(1)).images] == [False, True]
    assert [s.is_target for s in _sequence(user(0), assistant(1, loss=False), user("x"), assistant("y")).images] == [
        False,
        False,
    ]
    assert (
        _told(_sequence(user("x"), assistant("no", loss=False), user("z"), assistant("y")), supervised=True)
        == "y<|im_end|>"
    )


def test_a_target_that_is_read_later_is_followed_by_a_clean_copy_and_the_last_one_is_not() -> None:
    sequence = _sequence(user("draw"), assistant(3), user("again"), assistant(4))
    assert [(int(s.image.flatten()[0]), s.is_target) for s in sequence.images] == [(3, True), (3, False), (4, True)]
    spans = list(sequence.spans)
    where = [i for i, s in enumerate(spans) if isinstance(s, ImageSpan)]
    assert where[1] == where[0] + 1


def test_what_nothing_depends_on_is_trimmed() -> None:
    drawn = _sequence(user("draw"), assistant(0))
    assert isinstance(drawn.spans[-1], ImageSpan)
    told = _sequence(user(0), assistant("cat"), user("thanks"))
    assert _told(told).endswith("cat<|im_end|>")


def test_text_behind_an_image_in_an_answer_is_supervised_up_to_its_end() -> None:
    sequence = _sequence(user("draw"), assistant(0, " a cat"))
    assert _told(sequence, supervised=True) == " a cat<|im_end|>"


def test_every_supervised_token_behind_text_becomes_a_label() -> None:
    batch = pack([_sequence(user(0, "what?"), assistant("cat"))])
    labels = batch.labels[batch.labels >= 0]
    assert TOKENIZER.decode(labels) == "cat<|im_end|>"


def test_dropping_text_keeps_images_roles_and_answers() -> None:
    dropped = drop_text((user("a", 0, "b", loss=False), assistant("c", 1)))
    assert dropped == (user(0, loss=False), assistant("c", 1))
    unconditional = _sequence(user("a cat"), assistant(0), unconditional=True)
    assert _told(unconditional) == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n{0}"


def test_a_prompt_is_the_training_sequence_up_to_its_answer() -> None:
    trained = _sequence(user(0, "what?"), assistant("cat"))
    prompt = build_prompt(
        (user(0, "what?"),), [_load("0")], tokenizer=TOKENIZER, template="chatml", num_image_tokens=TOKENS
    )
    assert _told(trained) == _told(prompt) + "cat<|im_end|>"
    ids = [[t for s in q.spans if isinstance(s, TextSpan) for t in s.token_ids] for q in (trained, prompt)]
    assert ids[0][: len(ids[1])] == ids[1]
    target = ImageSpan(_load("0"), TOKENS, is_target=True)
    drawing = build_prompt(
        (user("x"),), [], tokenizer=TOKENIZER, template="chatml", num_image_tokens=TOKENS, then=target
    )
    assert _told(drawing) == _told(_sequence(user("x"), assistant(0)))


def test_what_follows_a_drawing_stands_where_it_does_in_a_prompt() -> None:
    """In training the drawing is there twice, noised and clean; in use once. Positions are those of one image."""
    turns = (Message("user", ("Draw.",)), Message("assistant", (0, "Done.")), Message("user", ("Again.",)))
    trained = _sequence(*turns, Message("assistant", (1,)))
    prompt = build_prompt(turns, [_load("0")], tokenizer=TOKENIZER, template="chatml", num_image_tokens=TOKENS)
    assert len(trained.images) == 3, "drawn, its copy, drawn"
    packed, used = pack([trained]), pack([prompt])
    kept = ~(packed.is_image & packed.image_is_target[packed.image_ids])
    assert torch.equal(packed.positions[kept], used.positions)
    assert torch.equal(packed.token_ids[kept], used.token_ids)
    assert packed.positions[-TOKENS:].tolist() == list(range(len(prompt), len(prompt) + TOKENS))


def test_text_cannot_forge_the_marks_of_messages_and_images() -> None:
    sequence = _sequence(user("\ue000\ue001\ue002x", 0), assistant("y"))
    assert len(sequence.images) == 1
    assert "user\nx[0]" in _told(sequence)


def test_a_sample_without_anything_to_learn_and_one_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing in this sample is learnt"):
        _sequence(user("hi"))
    with pytest.raises(ValueError, match=r"more than data.max_length 10"):
        _sequence(user("hi there"), assistant("yes"), max_length=10)


def test_a_template_that_loses_messages_or_is_absent_is_refused() -> None:
    tokenizer = build_byte_tokenizer()
    for chat_template, named in (("{{ messages[-1]['content'] }}", "kept 1 of 2 messages"), (None, "no chat template")):
        tokenizer.chat_template = chat_template
        with pytest.raises(ValueError, match=named):
            build_prompt((user("a"), assistant("b")), [], tokenizer=tokenizer, template="auto", num_image_tokens=TOKENS)


def test_what_nothing_stands_before_is_not_learnt() -> None:
    """A token is predicted by the one before it: the first of all never, one behind an image in VPiT alone."""
    bare = Message("assistant", ("y",), True)
    image = Message("user", (0,))
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = plain
    options = {"tokenizer": tokenizer, "template": "auto", "load_image": _load, "num_image_tokens": TOKENS}
    for messages in ((bare,), (image, bare)):
        with pytest.raises(RecordError, match="something stands before") as caught:
            build_sequence(Sample(messages, ("0",)), **options)  # type: ignore[arg-type]
        assert caught.value.kind == "no loss"
    sequence = build_sequence(Sample((image, bare), ("0",)), **options, boundary_ids=(300, 301))  # type: ignore[arg-type]
    assert int((pack([sequence], image_predicts_text=True).labels >= 0).sum()) == 1
