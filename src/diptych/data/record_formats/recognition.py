"""Which format records have: told by their fields, or named by the source's `format:`; never guessed between two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from diptych.data.record_formats.captions import is_captioned, parse_caption
from diptych.data.record_formats.llava import is_llava, parse_llava
from diptych.data.record_formats.public_formats import PUBLIC_FORMATS
from diptych.data.record_formats.record_shape import RecordSettings
from diptych.data.record_formats.triples import is_triple, parse_triple
from diptych.data.samples import Sample, parse_sample

NUM_LOOKED_AT = 16


@dataclass(frozen=True)
class RecordFormat:
    """`matches(record)`: whether it has the fields. `parse(record, number, settings)`: the Sample, or RecordError."""

    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[Any, int, RecordSettings], Sample]
    fields: str


RECORD_FORMATS = {
    "messages": RecordFormat(
        lambda record: isinstance(record.get("messages"), list),
        lambda record, number, settings: parse_sample(record),
        "messages",
    ),
    "llava": RecordFormat(is_llava, parse_llava, "conversations"),
    "triples": RecordFormat(is_triple, parse_triple, "instruction and output_image"),
    "captions": RecordFormat(is_captioned, parse_caption, "image and caption"),
    **{name: RecordFormat(kind.matches, kind.parse, kind.fields) for name, kind in PUBLIC_FORMATS.items()},
}


def recognise_format(records: Iterable[dict[str, Any]], where: str) -> str:
    """The name of the one format that all of the records that have any can be read as.

    Raises ValueError if there is none, or two, with what to write into the recipe.
    """
    seen: dict[str, None] = {}
    fields: dict[str, None] = {}
    for record in records:
        fields |= dict.fromkeys(map(str, record))
        seen |= {name: None for name, kind in RECORD_FORMATS.items() if kind.matches(record)}
    if len(seen) > 1:
        first, second = list(seen)[:2]
        raise ValueError(
            f"{where}: its records could be read as {first} ({RECORD_FORMATS[first].fields}) and as {second} "
            f"({RECORD_FORMATS[second].fields}); name one in the recipe, such as format: {first}"
        )
    if not seen:
        known = "; ".join(f"{name}: {kind.fields}" for name, kind in RECORD_FORMATS.items())
        raise ValueError(
            f"{where}: its first records have the fields {list(fields)[:12]}, which is no format known ({known}); "
            "name the fields that mean the same with `columns:`, such as columns: {caption: text}"
        )
    return next(iter(seen))
