"""One source of a recipe: where records lie, what they look like, its settings; samples by number, when asked for."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from diptych.data.image_regions import locate_region, split_region
from diptych.data.images import resolve_inside
from diptych.data.recently_used import RecentlyUsed
from diptych.data.record_formats.file_settings import FileSettings
from diptych.data.record_formats.recognition import NUM_LOOKED_AT, RECORD_FORMATS, recognise_format
from diptych.data.references import StoredImage, WebImage, frame_reference, names_part_of_a_file, split_frame
from diptych.data.samples import Message, RecordError, Sample, kind_of
from diptych.data.stores.store_opening import open_store, recognise_store
from diptych.data.web_images import split_url
from diptych.data_settings import DataConfig, SourceConfig

SAMPLES_KEPT = 8192
"""Of a source, in memory: a small set is parsed once, and of a large one a sample is asked for a few times in a row."""
SAMPLE_BYTES_KEPT = 256_000_000
"""Where records hold their images: what waits for its pack is to be here still, since a stream has no way back."""
_PATHS_KEPT = 16_384
TEMPLATED_FORMATS = {
    "captions": "{caption}",
    "triples": "{instruction}",
    "generation": "{caption}",
    "clip_captions": None,
}
"""Those whose requests `prompt_templates` says, and what stands in such a template for the record's words."""
_PLACEHOLDERS = re.compile(r"\{(?:caption|instruction)\}")
CLIP_FORMATS = ("llava", "clip_captions", "frame_folders")
"""Those whose clips become frames as `num_frames` or `fps` says."""


class Source(Sequence[Sample]):
    """The samples of a source by number. Opening one reads its first records alone, to see what they look like.

    Images are references (`references.py`): absolute, and inside `root` unless the source's settings say more.
    `source[number]` raises RecordError (kind, and a reason that names file and record) for a bad one.
    """

    def __init__(self, config: SourceConfig, data: DataConfig, *, index_dir: Path | None = None) -> None:
        self.config = config
        self._hosts = data.allow_urls or ()
        self._store = open_store(config, index_dir=index_dir)
        self._length = min(len(self._store), config.limit or len(self._store))
        if not self._length:
            raise ValueError(f"{config.path} holds no samples")
        self.root = os.path.abspath(config.image_root or self._store.folder)
        name = config.format or self._recognise()
        self._format = RECORD_FORMATS[name]
        self._check_task()
        self._check_settings(name)
        self._settings = FileSettings(
            config.task,
            config.prompt_templates,
            self._frames,
            locate=self._locate,
            list_folder=self._list_folder,
            fps=config.fps,
            max_frames=config.max_frames,
        )
        self._kept: RecentlyUsed[int, Sample] = RecentlyUsed(
            SAMPLES_KEPT, max_total=SAMPLE_BYTES_KEPT, size_of=_sample_bytes
        )
        self._file = lru_cache(_PATHS_KEPT)(self._find_file)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(self._length))]
        if not -self._length <= number < self._length:
            raise IndexError(f"{self.config.path} has {self._length} records, and none with the index {number}")
        number %= self._length
        return self._kept.get_or_make(number, lambda: self._read(number))

    def where(self, number: int) -> str:
        """What to call a record in a message: its file and its number there."""
        return self._store.where(number)

    def _read(self, number: int) -> Sample:
        try:
            record = self._record(number)
            sample = self._format.parse(record, number, self._settings)
            return replace(
                sample,
                messages=tuple(self._weighed(message) for message in sample.messages),
                images=tuple(self._locate(image) for image in sample.images),
                image_roles=self.config.image_roles,
            )
        except RecordError as error:
            raise RecordError(error.kind, f"{self.where(number)}: {error}") from None

    def _record(self, number: int) -> dict[str, Any]:
        record = self._store.read(number)
        if not isinstance(record, dict):
            raise RecordError("structure", f"a record is an object, not {kind_of(record)}")
        if not self.config.columns:
            return record
        theirs = set(self.config.columns.values())
        renamed = {ours: record[name] for ours, name in self.config.columns.items() if name in record}
        return {name: value for name, value in record.items() if name not in theirs} | renamed

    def _recognise(self) -> str:
        records, error = [], None
        for number in range(min(self._length, NUM_LOOKED_AT)):
            try:
                records.append(self._record(number))
            except RecordError as bad:
                error = error or bad
        if not records and error is not None:
            raise ValueError(f"{self.where(0)}: {error}; none of the first records can be read")
        return recognise_format(records, self.config.path)

    def _check_task(self) -> None:
        if self._format is RECORD_FORMATS["captions"]:
            if self.config.task is None:
                raise ValueError(
                    f"{self.config.path} holds images with captions; say what is learnt of them: task: draw (the image "
                    "from its caption) or task: read (the caption from its image)"
                )
        elif self.config.task is not None:
            raise ValueError(f"{self.config.path}: task is a setting of captions, and these records are none")

    def _check_settings(self, name: str) -> None:
        """Raises ValueError for a setting that would change nothing, and warns of a column that is not there."""
        config = self.config
        useless = []
        if config.prompt_templates and name not in TEMPLATED_FORMATS:
            useless.append(f"prompt_templates is of {', '.join(TEMPLATED_FORMATS)}; its format is {name}")
        defaults = SourceConfig(path=config.path)
        keys = ("num_frames", "fps", "max_frames")
        frames = [key for key in keys if getattr(config, key) != getattr(defaults, key)]
        if frames and name not in CLIP_FORMATS:
            useless.append(f"{', '.join(frames)} is of clips ({', '.join(CLIP_FORMATS)}); its format is {name}")
        kind = config.store or recognise_store(config.path)
        if config.split is not None and kind not in ("saved_dataset", "hub"):
            useless.append(f"split is of Hugging Face datasets; its store is {kind}")
        if config.subset is not None and kind != "hub":
            useless.append(f"subset is of datasets of the Hub; its store is {kind}")
        for template in config.prompt_templates if name in TEMPLATED_FORMATS else ():
            wanted = None if config.task == "read" else TEMPLATED_FORMATS[name]
            held = set(_PLACEHOLDERS.findall(template))
            if held != ({wanted} if wanted else set()):
                told = f"holds {wanted}, and nothing else in braces" if wanted else "holds no words of the record"
                raise ValueError(f"{config.path}: a prompt template of format {name} {told}; {template!r} does not fit")
        if useless:
            raise ValueError(f"{config.path}: a setting would change nothing: {'; '.join(useless)}; leave it out")
        if config.columns and kind != "hub":
            self._check_columns()

    def _check_columns(self) -> None:
        fields: dict[str, None] = {}
        for number in range(min(self._length, NUM_LOOKED_AT)):
            try:
                record = self._store.read(number)
            except RecordError:
                continue
            if isinstance(record, dict):
                fields |= dict.fromkeys(map(str, record))
        lacking = sorted(name for ours, name in self.config.columns.items() if not {ours, name} & set(fields))
        if fields and lacking:
            warnings.warn(
                f"{self.config.path}: `columns` names {', '.join(lacking)}, which none of the first records has; they "
                f"have {', '.join(list(fields)[:12])}",
                stacklevel=4,
            )

    def _weighed(self, message: Message) -> Message:
        loss = self.config.loss.get(message.role) if message.loss is None else None  # type: ignore[call-overload]
        return message if loss is None else replace(message, loss=loss)

    def _frames(self, clip: str) -> list[str]:
        if self.config.num_frames is not None:
            return [frame_reference(clip, place, self.config.num_frames) for place in range(self.config.num_frames)]
        if self.config.fps is None:
            raise RecordError("video", f"{clip[:200]!r} is a clip; say with num_frames or fps how it is read")
        if "://" in clip[:8]:
            raise RecordError("video", f"clip {clip[:200]!r} is on the web; fetch it, and name the file")
        from diptych.data.video import read_clip_info

        try:
            seconds = read_clip_info(self._locate(clip)).seconds
        except RecordError:
            raise
        except ValueError as error:
            raise RecordError("video", str(error)) from None
        num_frames = min(self.config.max_frames, max(1, math.ceil(seconds * self.config.fps - 1e-6)))
        return [frame_reference(clip, place, num_frames) for place in range(num_frames)]

    def _locate(self, image: str) -> str:
        """The reference of an image that a record names, from here on taken as it is. Raises RecordError."""
        if isinstance(image, StoredImage):
            return image
        if image[:5].lower() == "data:":
            return StoredImage(image)
        try:
            if image[:7].lower() in ("http://", "https:/"):
                if split_frame(image) is not None:
                    raise ValueError(f"clip {image[:200]!r} is on the web; fetch it, and name the file")
                if not self._hosts:
                    raise ValueError(f"image {image[:200]!r} is on the web; list its host in data.allow_urls")
                if split_region(image) is not None:
                    raise ValueError(f"image {image[:200]!r} is a part of one on the web; fetch it, and name the file")
                split_url(image, self._hosts)
                return WebImage(image, allowed_hosts=self._hosts)
            region = locate_region(image, self._locate)
            if region is not None:
                return region
            frame = split_frame(image)
            if frame is not None:
                return frame_reference(self._file(frame[0]), *frame[1:])
            if names_part_of_a_file(image):
                raise ValueError(f"image {image[:200]!r} names a part of a file; a record names whole files")
        except RecordError:
            raise
        except ValueError as error:
            raise RecordError("image path", str(error)) from None
        return self._file(image)

    def _list_folder(self, path: str) -> list[str]:
        """The names of the files in a folder inside the source's, in order. Raises RecordError if it is none."""
        try:
            with os.scandir(resolve_inside(self.root, path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except OSError as error:
            reason = f"folder {path[:200]!r} cannot be read in {self.root}: {error.strerror}"
            raise RecordError("missing clip", reason) from None
        except ValueError as error:
            raise RecordError("image path", str(error)) from None

    def _find_file(self, path: str) -> str:
        if self.config.allow_absolute and path.startswith("/") and "\x00" not in path:
            location = path
        else:
            try:
                location = resolve_inside(self.root, path)
            except ValueError as error:
                raise RecordError("image path", str(error)) from None
        if not os.path.isfile(location):  # unlike Path.is_file, False for a name too long for the system
            raise RecordError("missing image", f"image {path[:200]!r} does not exist in {self.root}")
        return os.path.join(self.root, path)


def _sample_bytes(sample: Sample) -> int:
    words = sum(len(part) for message in sample.messages for part in message.parts if isinstance(part, str))
    return words + sum(map(len, sample.images))


def open_sources(data: DataConfig, *, index_dir: Path | None = None) -> list[Source]:
    """The sources of a recipe. `index_dir`: where the indices of large files are kept for the next run.

    Raises ValueError that names the source: nothing is there, nothing in it, or its format is not known, or two.
    """
    return [Source(config, data, index_dir=index_dir) for config in data.sources]


def is_there(source: SourceConfig) -> bool:
    """Whether a source's path leads to anything on this machine; not whether it can be read."""
    from diptych.data.stores.webdataset import expand_shards

    if source.path.startswith("hub:"):
        return False
    try:
        return all(os.path.exists(path) for path in expand_shards(source.path)[:1])
    except ValueError:
        return False


@contextmanager
def naming_sample(source: Source, index: int) -> Iterator[Sample]:
    """The sample, and its file and number in whatever is then raised about it (ValueError; RecordError keeps its
    kind)."""
    sample = source[index]
    try:
        yield sample
    except RecordError as error:
        raise RecordError(error.kind, f"{source.where(index)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source.where(index)}: {error}") from error
