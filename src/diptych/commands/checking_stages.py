"""What the stages of a recipe need, looked for before the first is trained: what is missing is told now, not then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diptych.backbones.hub_loading import resolve_folder
from diptych.backbones.language import EMBEDDED_LANGUAGE_MODELS
from diptych.backbones.skeletons import read_encoder_config, read_language_config
from diptych.backbones.vision import EMBEDDED_IMAGE_ENCODERS
from diptych.config import Recipe
from diptych.data.sources import Source
from diptych.models.encoded_images import encoded_folder
from diptych.models.morph_files import WEIGHTS, tensor_names
from diptych.models.pixel_decoder import find_pixel_decoder
from diptych.models.training_sources import some_usable
from diptych.models.vpit_checkpoint import read_earlier
from diptych.train.checkpoint import refuse_overwriting

NUM_LOOKED_AT = 16
"""Records of a source, evenly over it: one of them must be good."""


def check_stages(stages: Sequence[Recipe]) -> None:
    """Opens the sources of all stages and reads some records, and looks into the folders of the models that they name.

    No weights are read and no embedded ones fetched; of models on the Hub only configs, but pixel decoders and morphs
    to start from whole. What an earlier stage will have written is not looked for. Raises ValueError, naming the stage
    by its output_dir, for what is missing, and for checkpoints that a stage would overwrite.
    """
    checked: set[str] = set()
    morphs: list[Path] = []
    for stage in stages:
        for key, check in _checks(stage, morphs):
            if key not in checked:
                try:
                    check()
                except ValueError as error:
                    raise ValueError(f"stage that writes into {stage.output_dir}: {error}") from error
                checked.add(key)
        morphs.append(Path(stage.output_dir, "morph").resolve())


def check_sources(stage: Recipe) -> None:
    """Opens the sources of a recipe and reads some records. Raises ValueError where one cannot be opened, does not go
    with its settings, or none of those records is good."""
    for number in range(len(stage.data.sources)):
        _check_source(stage, number)


def _checks(stage: Recipe, morphs: Sequence[Path]) -> list[tuple[str, Callable[[], object]]]:
    """Each by a key that says all that it depends on; `morphs`: those that earlier stages write."""
    config, trusted = stage.vpit, stage.trust_remote_code
    language, encoder = stage.language_model, config.image_encoder
    checks: list[tuple[str, Callable[[], object]]] = [
        (f"language {language}", lambda: _check_language(language, trust_remote_code=trusted)),
        (f"encoder {encoder}", lambda: _check_encoder(encoder)),
    ]
    if (start := config.init_from) is not None and not _is_within(start, morphs):
        checks.append((f"start {start}", lambda: read_earlier(start)))
    if (decoder := config.pixel_decoder) is not None and not _is_within(decoder, morphs):
        checks.append((f"decoder {decoder}", lambda: tensor_names(find_pixel_decoder(decoder)[0] / WEIGHTS)))
    if stage.train.resume_from_checkpoint is None:
        folder = Path(stage.output_dir, "checkpoints")
        checks.append((f"checkpoints {folder}", lambda: refuse_overwriting(folder)))
    for number, source in enumerate(stage.data.sources):
        key = f"source {source.model_dump_json()} {stage.data.allow_urls} {stage.cache_dir}"
        checks.append((key, lambda number=number: _check_source(stage, number)))
    return checks


def _check_source(stage: Recipe, number: int) -> None:
    """Raises ValueError where the source cannot be opened, and where none of some records is good: the folder of its
    images is missing, say."""
    source = Source(stage.data.sources[number], stage.data, index_dir=encoded_folder(stage) / "indices")
    if not source.config.is_stream:
        some_usable(range(0, len(source), max(1, len(source) // NUM_LOOKED_AT)), lambda index: source[index])


def _check_language(name: str, *, trust_remote_code: bool) -> None:
    if name in EMBEDDED_LANGUAGE_MODELS:
        return
    if Path(name).expanduser().is_dir():
        resolve_folder(name, what="language model")
    else:
        read_language_config(name, trust_remote_code=trust_remote_code)


def _check_encoder(name: str) -> None:
    if name in EMBEDDED_IMAGE_ENCODERS:
        return
    if Path(name).expanduser().is_dir():
        resolve_folder(name, what="image encoder")
    else:
        read_encoder_config(name)


def _is_within(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).resolve().is_relative_to(folder) for folder in folders)
