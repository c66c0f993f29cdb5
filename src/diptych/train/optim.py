"""AdamW, the learning-rate schedule, gradient clipping and averaged weights, over whole or sharded tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from diptych.settings import TrainConfig


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing its memory); any other tensor itself.

    Told by the method, not the class DTensor, whose import costs a single process two seconds.
    """
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def training_progress(step: int, train_seconds: float, config: TrainConfig) -> float:
    """How much of the run is over, 0 to 1: by steps or by the clock, whichever is further."""
    progress = step / config.max_steps
    if config.max_train_minutes is not None:
        progress = max(progress, train_seconds / (60 * config.max_train_minutes))
    return min(progress, 1.0)


def learning_rate(step: int, train_seconds: float, config: TrainConfig) -> float:
    """The rate of the update after `step` updates: linear warm-up over `warmup_ratio` of the run, then the schedule.

    Taken at the middle of the step, so that neither the first nor the last update is lost to a rate of zero.
    """
    progress = max((step + 0.5) / config.max_steps, training_progress(step, train_seconds, config))
    if progress < config.warmup_ratio:
        return config.learning_rate * progress / config.warmup_ratio
    decayed = min((progress - config.warmup_ratio) / (1 - config.warmup_ratio), 1.0)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * decayed)),
        "linear": 1 - decayed,
        "constant": 1.0,
    }[config.lr_scheduler_type]
    return config.learning_rate * factor


def build_optimizer(parameters: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only. Its state exists from the start, so that every checkpoint has it.

    Raises ValueError for a key of `train.learning_rates` that no parameter's name begins with.
    """
    members: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        members.setdefault((_own_rate(name, config) / config.learning_rate, decay), []).append(parameter)
    if idle := [key for key in config.learning_rates if not any(name.startswith(key) for name in parameters)]:
        raise ValueError(
            f"train.learning_rates names {', '.join(idle)}, but no trained parameter begins so; "
            f"they begin with: {', '.join(sorted({name.split('.')[0] for name in parameters}))}"
        )
    groups = [{"params": own, "weight_decay": decay, "factor": factor} for (factor, decay), own in members.items()]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,  # measured on one CPU core, 12M parameters: 19 ms; foreach 93 ms, plain 56 ms
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=local(parameter).device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def _own_rate(name: str, config: TrainConfig) -> float:
    """The rate of a parameter: that of the longest key that its name begins with."""
    keys = [key for key in config.learning_rates if name.startswith(key)]
    return config.learning_rates[max(keys, key=len)] if keys else config.learning_rate


def optimizer_moments(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's tensors, named `exp_avg.NAME` and `exp_avg_sq.NAME`."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for moment in ("exp_avg", "exp_avg_sq")
        for name, parameter in parameters.items()
    }


def set_updates(optimizer: torch.optim.AdamW, updates: int) -> None:
    """Sets how many updates the optimiser counts for its bias correction."""
    for state in optimizer.state.values():
        state["step"].fill_(updates)


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """`rate`: of parameters without a rate of their own; the others keep their ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def squared_norm(gradients: Iterable[Tensor]) -> float:
    """Sum of squares of this rank's parts; summed over ranks, the squared norm of the whole gradient."""
    norms = torch._foreach_norm([local(gradient) for gradient in gradients])  # pyright: ignore[reportPrivateImportUsage]
    return float(torch.stack([norm.double() for norm in norms]).square().sum())


@torch.no_grad()
def clip_gradients(gradients: Iterable[Tensor], norm: float, max_norm: float) -> None:
    """Scales gradients whose norm is `norm` down to `max_norm`, in place."""
    if norm > max_norm:
        parts = [local(gradient) for gradient in gradients]
        torch._foreach_mul_(parts, max_norm / norm)  # pyright: ignore[reportPrivateImportUsage]


class AveragedWeights:
    """Exponential moving average of the trained parameters, in float32.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that short runs forget their beginning.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.updates = 0
        self.tensors = {name: parameter.detach().clone().float() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [local(self.tensors[name]) for name in self._parameters]
        latest = [local(parameter.detach()).float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, latest, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
