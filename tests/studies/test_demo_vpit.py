"""Laws of the demo's other method, end to end at tiny scale: visual tokens are scored before and after the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.data.builders.emoji_paraphrases import PARAPHRASES
from diptych.models.checkpoint import load_morph
from diptych.studies import demo
from diptych.studies.demo import run_demo
from diptych.studies.visual_token_evaluation import KINDS, evaluate_visual_tokens, read_requests
from emoji_packages import NAMES, entry, write_packages
from studies.test_demo import Corners, folders
from tiny_pixel_decoder import build_decoder, decoder_recipe, write_parts
from tiny_vpit import NUM_TOKENS

NUM_CONCEPTS, NUM_UNSEEN = 6, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model, image encoder, pixel decoder, and tiny emoji packages, one with a known paraphrase."""
    root = tmp_path_factory.mktemp("world")
    names = [*NAMES[1:], next(iter(PARAPHRASES))]
    write_packages(root, [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(names)])
    build_tiny_language_model().save_pretrained(root / "llm")
    decoder = build_decoder(decoder_recipe(write_parts(root / "parts")))
    decoder.save_pretrained(root / "decoder")
    return root


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo-vpit"
    vpit = {
        "image_encoder": str(world / "parts" / "encoder"),
        "num_image_tokens": NUM_TOKENS,
        "pixel_decoder": str(world / "decoder"),
    }
    overrides = [
        f"language_model={json.dumps(str(world / 'llm'))}",
        f"cache_dir={json.dumps(str(world / 'cache'))}",
        f"vpit={json.dumps(vpit)}",
        "train.per_device_train_batch_size=4",
        "train.logging_steps=1",
        "train.save_every=2",
        "train.sample_every=2",
        "train.max_steps=4",
        'sample.prompts=["Draw bam in 3D style.", "Draw bam in flat style."]',
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NUM_UNSEEN", {"xfusion": 0, "vpit": NUM_UNSEEN})
        assert (
            run_demo(
                out,
                method="vpit",
                num_concepts=NUM_CONCEPTS,
                overrides=overrides,
                asset_folders=folders(str(world)),
                encoder=Corners(),
            )
            == 0
        )
    return out


def test_scores_hold_what_vpit_promises(finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text(encoding="utf-8"))
    assert -1 <= scores["free_running_cosine"] <= 1
    assert scores["goals"].keys() == {"free_running_cosine", "visual_top1", "naming_exact"}
    assert scores["goals"].keys() <= scores.keys()
    assert {"trained", "held_out", "tags", "unseen"} <= scores["visual_tokens"].keys()
    for kind, score in scores["visual_tokens"].items():
        low, high = score["top1"]["interval_95"]
        assert low <= score["top1"]["value"] <= high, kind
        assert score["top1"]["n"] > 0, kind
        assert score["top1"]["value"] <= score["top5"]["value"], kind
    assert scores["visual_tokens"]["unseen"]["top1"]["n"] == 2 * NUM_UNSEEN
    assert scores["visual_tokens"]["trained"]["top1"]["chance"] == 1 / (NUM_CONCEPTS + NUM_UNSEEN)
    assert scores["language_max_abs_diff"] > 0, "VPiT trains the language model"
    assert scores["language_same_weights"] is False


def test_the_page_says_what_is_memory_and_what_is_not(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    for kind in ("trained", "held_out", "tags", "unseen"):
        assert KINDS[kind] in html
    assert "The language model was trained" in html
    assert "untouched" not in html
    assert "free-running cosine" in html
    assert html.count("<img ") == html.count('src="data:image/png;base64,')


def test_the_morph_draws_with_the_decoder_that_it_carries(finished: Path) -> None:
    morph = load_morph(finished / "morph")
    (answer,) = morph.generate_batch([[{"role": "user", "content": "Draw bam in 3D style."}]], generation_mode="image")
    assert answer[0].size == (16, 16)


class Oracle:
    """A morph that answers every request with the right visual tokens, or (`shifted`) with the next picture's."""

    def __init__(self, morph: Any, data: Path, *, shifted: bool = False) -> None:
        self.encoder, self.recipe = morph.encoder, morph.recipe
        self.answers: dict[str, Tensor] = {}
        requests = [request for own in read_requests(data).values() for request in own]
        concepts = sorted({request.concept for request in requests})
        for request in requests:
            concept = request.concept
            if shifted:
                concept = concepts[(concepts.index(concept) + 1) % len(concepts)]
            self.answers[request.prompt] = self._tokens(data, concept, request.style)

    def _tokens(self, data: Path, concept: str, style: str) -> Tensor:
        from diptych.data.samples import read_samples
        from diptych.models.encoded_images import image_features

        samples = [s for f in data.glob("*_draw.jsonl") if f.stat().st_size for s in read_samples(f)]
        path = next(s.images[0] for s in samples if (s.meta["concept"], s.meta["style"]) == (concept, style))
        encoded = image_features(self.encoder, NUM_TOKENS, cache_dir=None)
        encoded.prepare([str(data / path)])
        return encoded.load(str(data / path))

    def answer(self, conversations: list[Any], **_: Any) -> list[list[Tensor]]:
        return [[self.answers[turns[0]["content"]]] for turns in conversations]


def test_the_right_visual_tokens_score_everything_and_the_wrong_ones_nothing(finished: Path) -> None:
    morph = load_morph(finished / "morph")
    data = finished / "data"
    right = evaluate_visual_tokens(data, Oracle(morph, data), progress=lambda *_: None)
    wrong = evaluate_visual_tokens(data, Oracle(morph, data, shifted=True), progress=lambda *_: None)
    assert right.keys() == wrong.keys() == read_requests(data).keys()
    for kind, score in right.items():
        assert score.cosine.value == pytest.approx(1, abs=1e-5), kind
        assert score.top1.value == score.top5.value == 1, kind
    for kind, score in wrong.items():
        assert score.cosine.value < 0.999, kind
        assert score.top1.value == 0, kind


def test_requests_of_each_kind_are_what_they_say(finished: Path) -> None:
    requests = read_requests(finished / "data")
    trained = {(request.concept, request.style) for request in requests["trained"]}
    prompts = {request.prompt for request in requests["trained"]}
    assert not trained & {(r.concept, r.style) for kind in ("held_out", "unseen") for r in requests[kind]}
    assert {r.concept for r in requests["held_out"]} <= {concept for concept, _ in trained}
    assert not {r.concept for r in requests["unseen"]} & {concept for concept, _ in trained}
    for kind in ("tags", "paraphrase"):
        for request in requests.get(kind, []):
            assert (request.concept, request.style) in trained
            assert request.prompt not in prompts
            assert request.concept not in request.prompt.lower() or kind == "tags"


def test_a_morph_without_a_pixel_decoder_is_refused(finished: Path) -> None:
    from diptych.studies.demo_evaluation import evaluate_demo

    morph = load_morph(finished / "morph")
    morph.pixel_decoder = None
    with pytest.raises(ValueError, match=r"no pixel decoder; set vpit.pixel_decoder"):
        evaluate_demo(finished / "data", morph, morph.recipe, progress=lambda *_: None, encoder=Corners())


def test_nothing_is_trained_on_the_visual_tokens_of_unseen_concepts(finished: Path) -> None:
    seen = (finished / "data" / "train_draw.jsonl").read_text(encoding="utf-8")
    for request in read_requests(finished / "data")["unseen"]:
        assert f" {request.concept} " not in seen
