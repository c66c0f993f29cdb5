"""A distance of two pictures by EfficientNet-Lite0's feature maps: made as LPIPS is, and not comparable with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.backbones.vision import EfficientNetFeatures, ImageEncoder

EPSILON = 1e-10


@torch.no_grad()
def effnet_distance(encoder: ImageEncoder, images: Tensor, real: Tensor) -> Tensor:
    """[B] distances of images [B, 3, H, W] in -1..1 to real ones (or to one, [1, 3, H, W]): 0 for equal pictures, 4 at
    most.

    The maps of the seven stages, each place's channels brought to length 1; squared distances, averaged over places,
    then over stages. LPIPS (Zhang et al. 2018) weighs channels of AlexNet or VGG as people judge; here all count alike.
    Both pictures are brought to the encoder's size first.
    """
    network = encoder.network
    assert isinstance(network, EfficientNetFeatures)
    device = next(network.parameters()).device
    both = encoder.preprocessing(torch.cat([images, real]).to(device)).contiguous(memory_format=torch.channels_last)
    distances = []
    for stage in network.network.stage_maps(both):
        mine, theirs = normalize(stage.double(), dim=1, eps=EPSILON).split((len(images), len(real)))
        distances.append((mine - theirs).square().sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(distances).mean(dim=0).cpu()
