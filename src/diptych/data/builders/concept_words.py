"""The words of a concept's name and tags: without number, and without what says a part, a state or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

_SAY_NO_THING = frozenset(("face", "with", "without", "in", "of", "and", "not", "done", "departure", "arrival"))


def stem(word: str) -> str:
    """A noun without its plural: `grapes` and `grape`, `cherries` and `cherry` are one."""
    word = word.lower()
    for ending, end in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + end
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word


def stems(name: str) -> tuple[str, ...]:
    """Of all words of a name."""
    return tuple(stem(word) for word in re.split(r"[\s-]+", name) if word)


@lru_cache(maxsize=2**16)
def things_in(name: str) -> tuple[str, ...]:
    """The words that say what it is, as stems: `tiger` of "tiger face", `airplane` of "airplane arrival"."""
    return tuple(word for word in stems(name) if word not in _SAY_NO_THING) or stems(name) or (name,)


def usable_tags(tags: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Name of a concept to those of its tags that are words and name no other concept.

    emojibase cuts tags of several words in pieces ("sea lion" of the seal: `sea`, `lion`), which cannot be put together
    again; what is left out are the pieces that name another concept.
    """
    names = {stems(name) for name in tags}
    return {
        name: tuple(
            tag
            for tag in found
            if re.fullmatch(r"[^\W\d_]{2,}([ -][^\W\d_]{2,})*", tag)
            and (set(stems(tag)) <= set(stems(name)) or stems(tag) not in names)
        )
        for name, found in tags.items()
    }
