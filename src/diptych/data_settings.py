"""The settings of a recipe's data: its sources, and what holds for all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diptych.settings import Settings

Stores = Literal["json_lines", "json_array", "table", "parquet", "webdataset", "image_folder", "saved_dataset", "hub"]
PublicStores = Literal["headless_table", "coco_captions", "pix2pix_folder"]
Formats = Literal["messages", "llava", "triples", "captions"]
PublicFormats = Literal["visual_cot", "vstar", "generation", "clips", "clip_captions", "frame_folders"]


class SourceConfig(Settings):
    """One source of samples: where its records lie, what one looks like, how many of it per round of the mixture."""

    path: str = Field(
        description="a .jsonl, .json, .csv, .tsv, .parquet or .tar file (these two: also a glob, a range as "
        "{000..012}, or a folder), a folder of images, a folder of datasets' save_to_disk, or hub:OWNER/NAME"
    )
    weight: int = Field(default=1, gt=0)
    store: Literal[Stores, PublicStores] | None = Field(
        default=None, description="what `path` is, where its name does not tell"
    )
    format: Literal[Formats, PublicFormats] | None = Field(
        default=None, description="what a record looks like; null: told from the first ones"
    )
    split: str | None = Field(default=None, description="of a Hugging Face dataset")
    subset: str | None = Field(default=None, description="of a Hugging Face dataset of the Hub")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="fields under other names: ours to theirs, such as instruction: edit_prompt",
    )
    limit: int | None = Field(default=None, gt=0, description="no more than the first so many records")
    epochs: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="passes over it, then the other sources go on without it; where all end, all begin again (of "
        "mixing batch: passes to the end of a micro-batch)",
    )
    tokens: int | None = Field(
        default=None, gt=0, description="the same by its tokens: about so many, by the mean length of its records"
    )
    task: Literal["draw", "read"] | None = Field(
        default=None, description="of captions: draw the image that they describe, or describe it"
    )
    prompt_templates: tuple[str, ...] = Field(
        default=(),
        description="of captions and triples: what the user says, one of these by the record's number; {caption} or "
        "{instruction} stands for the record's own words",
    )
    loss: dict[Literal["system", "user", "assistant"], bool] = Field(
        default_factory=dict, description="whether turns of a role are learnt, where a message does not say itself"
    )
    image_roles: tuple[Literal["context", "target"], ...] = Field(
        default=(),
        description="what a record's images are, in their order (the last one of all that follow): read, or learnt to "
        "be drawn; empty: context in a user's turn, target in an assistant's, as its loss says",
    )
    image_root: str | None = Field(
        default=None, description="folder that images are relative to, and may not leave; null: that of the records"
    )
    allow_absolute: bool = Field(default=False, description="images may be absolute paths, anywhere on this machine")
    num_frames: int | None = Field(default=None, gt=0, le=4096, description="images that a clip becomes, spread evenly")
    fps: float | None = Field(default=None, gt=0, description="the same by its length: so many a second")
    max_frames: int = Field(default=45, gt=0, le=4096, description="of fps, at most")

    @property
    def is_stream(self) -> bool:
        """Whether its records come in their own order alone: a dataset of the Hub."""
        return self.store == "hub" or self.path.startswith("hub:")

    @model_validator(mode="after")
    def _goes_together(self) -> SourceConfig:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError("num_frames and fps both say how many frames a clip has; leave one out")
        if self.epochs is not None and self.tokens is not None:
            raise ValueError("epochs and tokens both say when a source is through; leave one out")
        return self


class DataConfig(Settings):
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    mixing: Literal["sample", "batch"] = Field(
        default="sample",
        description="what is of one source: a sample, or a whole micro-batch. Batches that only draw, or only read, "
        "cost less: every batch that reads runs the text tower under gradients",
    )
    max_length: int = Field(default=2048, gt=0)
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="share of records that may be bad: they are skipped and counted"
    )
    allow_urls: Literal[False] | tuple[str, ...] = Field(
        default=False, description="hosts that images may be fetched from, by https alone; false: none"
    )

    @model_validator(mode="after")
    def _ends_beside_others(self) -> DataConfig:
        if len(self.sources) == 1 and (self.sources[0].epochs or self.sources[0].tokens):
            raise ValueError(
                "epochs and tokens say when one source is through and others go on; of the only source they would "
                "change nothing: train.max_steps says how long a run is"
            )
        return self
