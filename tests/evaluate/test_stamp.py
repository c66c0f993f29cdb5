"""Laws of the stamp: it names what made a score, options left out as the morph fills them in, and what differs."""

from __future__ import annotations

from diptych.evaluate.answering import Sampling
from diptych.evaluate.stamp import build_stamp, resolve_sampling, stamp_differences
from tiny_vpit import build_vpit
from tiny_xfusion import build_tiny_morph


def test_everything_that_made_a_score_is_named() -> None:
    morph = build_tiny_morph()
    asked = Sampling(num_inference_steps=4, seed=5)
    stamp = build_stamp(morph, name="tiny", morph_hash="a" * 64, pixel_decoder_hash="b" * 64, sampling=asked)
    assert stamp["base_hash"] == morph.language.hash
    assert stamp["hashes"] == {"autoencoder": morph.autoencoder.hash, "pixel_decoder": "b" * 64}
    assert (stamp["morph_hash"], stamp["method"], stamp["seed"], stamp["dtype"]) == ("a" * 64, "xfusion", 5, "float32")
    assert (stamp["num_inference_steps"], stamp["sampler"]) == (4, "euler")
    assert stamp["recipe"]["image_size"] == morph.recipe.image_size
    assert {"python", "transformers", "numpy", "torchmetrics"} <= stamp["versions"].keys()
    assert {"torch", "commit", "device"} <= stamp["machine"].keys()


def test_guidance_left_out_is_what_the_morph_fills_in() -> None:
    trained = build_tiny_morph(objective={"text_cond_dropout_prob": 0.1})
    untrained = build_tiny_morph(objective={"text_cond_dropout_prob": 0.0})
    assert resolve_sampling(trained, Sampling())["guidance_scale"] == 3.0
    assert resolve_sampling(untrained, Sampling())["guidance_scale"] == 1.0
    assert resolve_sampling(trained, Sampling(guidance_scale=0.0, sampler="heun")) == {
        "guidance_scale": 0.0,
        "num_inference_steps": 2,
        "sampler": "heun",
    }


def test_a_morph_that_draws_no_pixels_is_stamped_all_the_same() -> None:
    stamp = build_stamp(build_vpit(), name="v", morph_hash="a" * 64, pixel_decoder_hash=None, sampling=Sampling())
    assert stamp["method"] == "vpit"
    assert set(stamp["hashes"]) == {"image_encoder"}


def test_differences_name_the_key_and_both_values() -> None:
    one = {"seed": 0, "recipe": {"a": 1, "b": {"c": [1, 2], "d": [{"e": 1}, {"e": 2}]}}, "gone": "x"}
    other = {"seed": 0, "recipe": {"a": 1, "b": {"c": [1, 3], "d": [{"e": 1}, {"e": 3}]}}, "new": None}
    assert stamp_differences(one, other) == [
        "recipe.b.c: [1, 2], not [1, 3]",
        "recipe.b.d.1.e: 2, not 3",
        "gone: x, not nothing",
        "new: nothing, not None",
    ]
    assert stamp_differences(one, other, ignored=frozenset({"recipe", "gone", "new"})) == []
