"""How good a pixel decoder is, apart from any language model: real images to visual tokens and back.

    python bench/reconstruction_scores.py emoji-pixels data/emoji --num 300 --out reconstructed.png
    python bench/reconstruction_scores.py emoji-pixels data/emoji --num 300 --autoencoder emoji-tiny

A reconstruction counts as right where the nearest real image of its style, of all concepts, is that of its concept, by
EfficientNet-Lite0's features, as the demo judges drawings. `trained`: images that the decoder was trained on; `held
out`: images that it never saw. The sheet shows real images left, reconstructions right.

With `--autoencoder` they are that autoencoder's latents and back, nothing denoised: what bounds every such decoder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.vision import load_image_encoder
from diptych.data.contact_sheet import draw_image_grid
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.evaluate.emoji_gallery import ENCODER, compare_with_gallery, read_combinations
from diptych.evaluate.retrieval import retrieval_score
from diptych.models.pixel_decoder import load_pixel_decoder
from diptych.nn.connector import reduce_tokens
from diptych.studies.demo_evaluation import choose_combinations
from paired import print_table


@torch.no_grad()
def through(name: str, images: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in -1..1 to an autoencoder's latents and back."""
    autoencoder = load_autoencoder(name)
    return torch.cat([autoencoder.decode(autoencoder.encode(chunk)) for chunk in images.split(32)]).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--guidance", type=float, help="in place of the recipe's")
    parser.add_argument("--autoencoder", help="judge its latents and back, in place of the decoder's drawings")
    parser.add_argument("--out", type=Path, help="a PNG of the first reconstructions beside the real images")
    options = parser.parse_args()
    torch.set_num_threads(2)
    decoder: Any = load_pixel_decoder(options.decoder)
    encoder, size = decoder.load_encoder(), decoder.recipe.image_size
    gallery = read_combinations(options.data)
    chosen = choose_combinations(gallery, options.num, seed=0)
    own = encoder.preprocessing
    pixels = torch.stack(
        [image_to_tensor(c.real, own.image_size, fit=own.fit, interpolation=own.interpolation) for c in chosen]
    )

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        num_tokens = decoder.visual_tokens.num_image_tokens
        return torch.cat([reduce_tokens(encoder.features(chunk), num_tokens) for chunk in pixels.split(32)])

    features = encode(pixels)
    if options.autoencoder is None:
        drawn = decoder.decode(features, guidance_scale=options.guidance)
    else:
        drawn = through(options.autoencoder, torch.stack([image_to_tensor(c.real, size) for c in chosen]))
    again = encode(drawn)
    images = [tensor_to_image(image) for image in drawn]
    ranks, styles = compare_with_gallery(
        load_image_encoder(ENCODER),
        gallery,
        chosen,
        images,
        size=size,
        progress=lambda what, done, total: print(f"{what}: {done} of {total}", file=sys.stderr),
    )
    num_concepts = len({c.concept for c in gallery})
    rows = []
    for kind, held_out in (("trained", False), ("held out", True)):
        own = [i for i, c in enumerate(chosen) if c.held_out == held_out]
        if not own:
            continue
        for top in (1, 5):
            score = retrieval_score([ranks[i] for i in own], top=top, gallery_size=num_concepts)
            low, high = score.interval
            rows.append([f"{kind}, top-{top}", f"{score.value:.1%}", f"{low:.1%} to {high:.1%}", f"{score.num}"])
        cosine = float((features[own] * again[own]).sum(-1).mean())
        right = sum(styles[i] for i in own) / len(own)
        rows.append([f"{kind}, visual tokens of the reconstruction, cosine", f"{cosine:.3f}", "", f"{len(own)}"])
        rows.append([f"{kind}, style right", f"{right:.1%}", "", f"{len(own)}"])
    judged = options.autoencoder or options.decoder
    print_table(f"{judged}, among {num_concepts} concepts", ["score", "value", "95%", "n"], rows)
    if options.out is not None:
        few = list(range(24)) + [i for i, c in enumerate(chosen) if c.held_out][:24]
        pairs = [image for i in few for image in (chosen[i].real.resize((size, size)), images[i])]
        labels = [text for i in few for text in (chosen[i].concept, "")]
        draw_image_grid(pairs, labels, columns=12).save(options.out)


if __name__ == "__main__":
    main()
