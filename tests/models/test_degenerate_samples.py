"""Law of what a set may hold: whatever conversation, whatever image, the losses and gradients are finite or it is
refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.data.samples import Message, RecordError, Sample
from diptych.models.training_sources import kept_streams
from tiny_vpit import FEATURE_DIM, build_training, vpit_recipe, write_emblems
from train.tiny_xfusion_runs import build_xfusion_training, write_samples, xfusion_recipe

IMAGES = ("plain", "zero", "constant", "tiny", "sparse")
MAX_LENGTH = 60


class Records(list[Sample]):
    """In place of a source of a recipe."""

    def where(self, number: int) -> str:
        return f"record {number}"


def image(kind: str, shape: tuple[int, ...]) -> Tensor:
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(len(kind)))
    made = {"plain": plain, "zero": plain * 0, "constant": plain * 0 + 1, "tiny": plain * 1e-20, "sparse": plain * 0}
    made["sparse"][..., :1] = 1e4
    return made[kind]


words = st.text(alphabet="ab <>\n\u00e9\U0001f600", max_size=12)
turns = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant", "assistant", "system"]),
        st.lists(words | st.sampled_from(IMAGES).map(lambda kind: (kind,)), max_size=4),
        st.sampled_from([None, None, True, False]),
    ),
    min_size=1,
    max_size=4,
)


def sample(conversation: list[tuple[str, list[Any], bool | None]]) -> Sample:
    messages, images = [], []
    for role, parts, loss in conversation:
        placed: list[str | int] = []
        for part in parts:
            if isinstance(part, tuple):
                placed.append(len(images))
                images.append(part[0])
            elif part:
                placed.append(part)
        messages.append(Message(role, tuple(placed), loss))
    return Sample(tuple(messages), tuple(images))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both methods, which take what they are given for images already encoded."""
    vpit_data = write_emblems(tmp_path_factory.mktemp("emblems"))
    vpit = build_training(vpit_recipe("nowhere", vpit_data, vpit={"visual_input_noise": 0.3}))
    data = tmp_path_factory.mktemp("images") / "set"
    write_samples(data)
    xfusion = build_xfusion_training(xfusion_recipe(Path("nowhere"), data, batch_size=2))
    for method, encoded, shape in (
        (vpit, vpit.features, (vpit.recipe.vpit.num_image_tokens, FEATURE_DIM)),
        (xfusion, xfusion.latents, (3, 4, 4)),
    ):
        encoded.load = lambda kind, shape=shape: image(kind, shape)  # type: ignore[method-assign]
        method.data.prepare = lambda picks: None  # type: ignore[method-assign]
        recipe = method.recipe
        method.recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": MAX_LENGTH})})
        method.train()
    return {"vpit": vpit, "xfusion": xfusion}


def refusal(method: Any, pick: tuple[int, int, int], seed: int) -> RecordError | None:
    try:
        method.build_batch([pick], seed=seed)
    except RecordError as error:
        return error
    return None


@pytest.mark.parametrize("name", ["vpit", "xfusion"])
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations=st.lists(turns, min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_losses_are_finite_or_the_sample_is_refused(
    trainings: dict[str, Any], name: str, conversations: list[Any], seed: int
) -> None:
    method = trainings[name]
    records = Records(sample(one) for one in conversations)
    method.sources = method.data.samples = (records,)
    method._streams = kept_streams()
    usable = []
    for index in range(len(records)):
        pick = (index, 0, index)
        refused = refusal(method, pick, seed)
        if refused is None:
            usable.append(pick)
        else:
            assert refused.kind in {"no loss", "too long"}
            assert f"record {index}" in str(refused)
    if not usable:
        return
    batch = method.build_batch(usable, seed=seed)
    losses = method(batch)
    assert {kind: loss.count for kind, loss in losses.items()} == method.loss_counts(batch)
    num_learnt = sum(loss.count for loss in losses.values())
    assert num_learnt > 0 or name == "xfusion", "X-Fusion's frozen text tower learns nothing from text alone"
    for parameter in method.trainable_parameters().values():
        parameter.grad = None
    total = torch.stack([loss.total for loss in losses.values()]).sum()
    assert math.isfinite(total.item())
    assert total.requires_grad == (num_learnt > 0)
    if not num_learnt:
        return
    total.backward()
    for key, parameter in method.trainable_parameters().items():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), key
