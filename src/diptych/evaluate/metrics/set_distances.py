"""How the features of a set of images lie: KID and the Fréchet distance to another set, and diversity within it.

Kernel and distance are torchmetrics'; KID is taken over all images at once, so that it has an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.evaluate.bootstrap import Estimate

NUM_RESAMPLES = 500
FEWEST = 10
"""Images that an interval, and with it a score, is told of at least: of fewer a bootstrap knows too little."""
_ROWS_AT_ONCE = 512
Kernel = Callable[[Tensor, Tensor], Tensor]


def estimate_kid(drawn: Tensor, real: Tensor, *, are_pairs: bool, seed: int = 0) -> Estimate:
    """KID (Binkowski et al. 2018): squared MMD of features [N, D] and [M, D] under the kernel (x y / D + 1)^3, without
    bias, hence below 0 at times; with its 95% bootstrap interval over images, which is wide where the sets are alike.

    `are_pairs`: row i of both belongs to one prompt. Then no image is compared with that of its own prompt (the
    one-sample U-statistic of Gretton et al. 2012, Lemma 6): otherwise copies of the real images would score below 0.
    Raises ValueError for fewer images than FEWEST, for pairs that are none, and for features of two widths.
    """
    from torchmetrics.image.kid import poly_kernel

    if drawn.shape[1] != real.shape[1] or (are_pairs and len(drawn) != len(real)):
        raise ValueError(f"features {list(drawn.shape)} and {list(real.shape)} cannot be compared")
    mean_kernel = partial(_mean_kernel, poly_kernel)
    drawn, real = drawn.double(), real.double()
    generator = torch.Generator().manual_seed(seed)
    of_drawn = _resamples(len(drawn), generator)
    of_real = of_drawn if are_pairs else _resamples(len(real), generator)
    within = mean_kernel(drawn, drawn, of_drawn, of_drawn, without_own=True) + mean_kernel(
        real, real, of_real, of_real, without_own=True
    )
    return _estimate(within - 2 * mean_kernel(drawn, real, of_drawn, of_real, without_own=are_pairs), len(drawn))


def estimate_diversity(features: Tensor, *, seed: int = 0) -> Estimate:
    """1 - the mean cosine of two different images' features [N, D], with its 95% bootstrap interval over images: 0 if
    all are alike. Raises ValueError for fewer images than FEWEST."""
    unit = normalize(features.double(), dim=-1)
    weights = _resamples(len(unit), torch.Generator().manual_seed(seed))
    return _estimate(1 - _mean_kernel(lambda x, y: x @ y.T, unit, unit, weights, weights, without_own=True), len(unit))


def frechet_distance(drawn: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Of the Gaussians of features [N, D] and of `mean` [D], `covariance` [D, D]. There is no sound interval: the
    distance is biased upwards, and that of a resample more so.

    Raises ValueError for N <= D, where the covariance of what is drawn is singular and the distance mostly bias.
    """
    from torchmetrics.image.fid import _compute_fid

    if len(drawn) <= drawn.shape[1]:
        raise ValueError(f"a Fréchet distance of {drawn.shape[1]} features needs more images than {len(drawn)}")
    features = drawn.double()
    return float(_compute_fid(features.mean(dim=0), features.T.cov(), mean.double(), covariance.double()))


def _resamples(num: int, generator: torch.Generator) -> Tensor:
    """How often each of `num` images counts [1 + NUM_RESAMPLES, num]: once, then as a bootstrap draws them."""
    if num < FEWEST:
        raise ValueError(f"{num} images are too few for a score of a set; it takes {FEWEST}")
    drawn = torch.randint(num, (NUM_RESAMPLES, num), generator=generator)
    counts = torch.zeros(NUM_RESAMPLES, num, dtype=torch.double).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    return torch.cat([torch.ones(1, num, dtype=torch.double), counts])


def _mean_kernel(
    kernel: Kernel, left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor, *, without_own: bool
) -> Tensor:
    """The weighted mean of kernel(left i, right j) for each row of weights; `without_own`: where i is not j."""
    total = torch.zeros(len(of_left), dtype=torch.double)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values = kernel(left[rows], right)
        if without_own:
            values.diagonal(start).zero_()
        total += (of_left[:, rows] * (of_right @ values.T)).sum(dim=1)
    pairs = of_left.sum(dim=1) * of_right.sum(dim=1)
    return total / (pairs - (of_left * of_right).sum(dim=1) if without_own else pairs)


def _estimate(values: Tensor, num: int) -> Estimate:
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Estimate(float(values[0]), (low, high), num)
