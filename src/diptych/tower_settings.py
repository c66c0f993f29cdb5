"""The settings of the vision tower: its design, its widths, where its weights come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from diptych.settings import Settings

SHARED = ("patch_size", "time_conditioning", "text_pooling", "text_matching", "boundary_tokens")
"""What the tower that `match` measures by has as the tower itself has it, unless `match_to` says otherwise."""


class VisionTowerConfig(Settings):
    """The trained tower (X-Fusion section 3). Widths left out are the language model's own: a symmetric tower."""

    layer_design: Literal["dual", "single", "gated", "projection"] = "dual"
    x_fuse: Literal["none", "text", "image", "both"] = Field(
        default="none", description="of dual: which tokens also go through the other tower's layers"
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="language-model layers that the vision blocks stand beside, ascending; null: every layer",
    )
    hidden_size: int | None = Field(default=None, gt=0)
    intermediate_size: int | None = Field(default=None, gt=0)
    num_attention_heads: int | None = Field(default=None, gt=0)
    num_key_value_heads: int | None = Field(default=None, gt=0)
    patch_size: int = Field(default=2, gt=0)
    time_conditioning: Literal["add", "adaln"] = "add"
    text_pooling: bool = Field(
        default=False, description="add the pooled text before a target image to its time embedding"
    )
    text_matching: bool = Field(
        default=False,
        description="of text_pooling: also multiply the pooled text before an image that is read into its patches, or "
        "their features of image_input, from nothing on, so that what the words name can be found in it",
    )
    boundary_tokens: bool = Field(default=True, description="learned [BOI] and [EOI] positions around each image")
    init_from: str | None = Field(default=None, description="morph whose vision tower is trained on")
    fresh_attention: bool | tuple[int, ...] = Field(
        default=False,
        description="of init_from, leave the attention weights as a new tower has them, in all blocks (true) or in "
        "those beside these layers: attention that has met one image at a time shuts itself to those of a request",
    )
    diffusion_transformer: str | None = Field(
        default=None,
        description="pretrained DiT or SD3 transformer (diffusers; folder or id) that the tower is made of, one block "
        "beside each of `layers`",
    )
    match: Literal["parameters", "compute"] | None = Field(
        default=None, description="choose the widths so that this tower costs what `match_to` does"
    )
    match_to: VisionTowerConfig | None = Field(
        default=None,
        description="settings of another tower, beside this one's patch size, time conditioning, pooling and boundary "
        "tokens unless it names its own; null: the symmetric dual tower",
    )

    @field_validator("fresh_attention", mode="before")
    @classmethod
    def _all_or_some(cls, value: Any) -> Any:
        layers = value if isinstance(value, list | tuple) else None
        if isinstance(value, bool) or (layers and all(type(layer) is int for layer in layers)):
            if layers and (list(layers) != sorted(set(layers)) or layers[0] < 0):
                raise ValueError(f"layers must stand once each, ascending from 0 up; they are {list(layers)}")
            return value
        raise ValueError("must be true (all layers), false, or a list of layers such as [21]")

    @model_validator(mode="before")
    @classmethod
    def _matched_alike(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("match"):
            return values
        shared = {name: values[name] for name in SHARED if name in values}
        other = {} if values.get("match_to") is None else values["match_to"]
        return {**values, "match_to": {**shared, **other}} if isinstance(other, dict) else values

    @model_validator(mode="after")
    def _layers_ascend(self) -> VisionTowerConfig:
        layers = self.layers
        if layers is not None and (not layers or list(layers) != sorted(set(layers)) or layers[0] < 0):
            raise ValueError(
                "layers must name layers of the language model, ascending from 0 up, at least one; it is "
                f"{list(layers)}"
            )
        return self

    @model_validator(mode="after")
    def _matches(self) -> VisionTowerConfig:
        if self.match is None:
            if self.match_to is not None:
                raise ValueError("vision_tower.match_to needs vision_tower.match: parameters or compute")
            return self
        if self.layer_design == "single":
            raise ValueError("vision_tower.match: the single tower is the language model itself, of no other width")
        if self.intermediate_size is not None:
            raise ValueError("vision_tower.match chooses intermediate_size; leave one of the two out")
        if self.match_to is not None and self.match_to.match is not None:
            raise ValueError("vision_tower.match_to must not match anything else in its turn")
        if self.match_to is not None and self.match_to.init_from is not None:
            raise ValueError(
                "vision_tower.match_to.init_from: a tower costs the same wherever its weights come from; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> VisionTowerConfig:
        if self.fresh_attention and self.init_from is None:
            raise ValueError("vision_tower.fresh_attention is of a tower that vision_tower.init_from starts; name it")
        if self.text_matching and not self.text_pooling:
            raise ValueError("vision_tower.text_matching multiplies in what text_pooling pools; set text_pooling: true")
        if self.x_fuse != "none" and self.layer_design != "dual":
            raise ValueError(f"vision_tower.x_fuse is an option of the dual tower, not of {self.layer_design}")
        if self.layers is not None and self.layer_design != "dual":
            raise ValueError(f"vision_tower.layers: design {self.layer_design} acts at every layer; leave it out")
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.diffusion_transformer is not None:
            if given or self.match is not None:
                raise ValueError(
                    f"vision_tower.{given[0] if given else 'match'}: a diffusion transformer has its own widths; "
                    "leave it out"
                )
            if self.layer_design != "dual" or self.time_conditioning != "adaln":
                raise ValueError(
                    "vision_tower.diffusion_transformer needs layer_design: dual and time_conditioning: adaln"
                )
        if given and self.layer_design == "single":
            raise ValueError(f"vision_tower.{given[0]}: the single tower is the language model itself; leave it out")
        heads = [name for name in given if name.endswith("heads")]
        if heads and self.layer_design == "projection":
            raise ValueError(f"vision_tower.{heads[0]}: a joint attention has the language model's heads; leave it out")
        return self
