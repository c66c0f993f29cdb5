"""A method on one process or many: who is trained, how trained parameters are divided, and when ranks talk.

Under several processes FSDP2 divides trained parameters, their gradients, the optimiser's state and the averages;
frozen parameters stay whole on every rank. What a rank computes depends on its samples (one may have only text, another
only images), and FSDP2's own hooks would then issue different collectives on different ranks, and hang or mix up
gradients. So within a step ranks talk at two fixed points only: parameters are gathered before the first micro-batch
and gradients reduced after the last, module by module in one order. The price: whole trained parameters and gradients
live through the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.models.method import LossSum, Method
from diptych.train.optim import local

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class _Root(nn.Module):
    """The one module that FSDP2 sees as the root; called without a batch it only lets gradients be reduced."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any, anchor: Tensor | None = None) -> Any:
        return self.method(batch) if anchor is None else anchor * 1.0


class TrainedMethod:
    """Moves a method to its device, makes its parameters equal on all ranks and, with several, divides them.

    `parameters`: name -> what the optimiser updates: whole parameters, or this rank's shards as DTensors.
    Raises ValueError if nothing is trained, or if a trained parameter is frozen or a frozen one is not.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        module = cast(nn.Module, method)
        module.to(device)
        self.method = method
        self.device = device
        trained = method.trainable_parameters()
        _check_who_trains(module, trained)
        self._places = _find_places(module, trained)
        for parameter in trained.values():
            distributed.broadcast_(parameter.data)
        self._root: nn.Module = module
        self._shards: list[FSDPModule] = []
        if distributed.world_size() > 1:
            self._root = _Root(module)
            self._shards = self._divide(set(trained.values()))
        self.parameters = self._registered()

    def _divide(self, trained: set[nn.Parameter]) -> list[FSDPModule]:
        from torch.distributed.fsdp import fully_shard  # two seconds that a single process saves

        frozen = {parameter for parameter in self._root.parameters() if parameter not in trained}
        mesh = distributed.data_mesh()
        modules = [*self.method.shard_modules(), self._root]
        # Gathered parameters stay through the step, so the hook that it speaks of has nothing to gather.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        root = cast("FSDPModule", self._root)
        root.set_requires_gradient_sync(False)
        root.set_reshard_after_backward(False)
        return [cast("FSDPModule", module) for module in modules]

    def _registered(self) -> dict[str, nn.Parameter]:
        """The parameters that the modules hold at present: shards, or whole ones while gathered."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._places.items()}

    def begin_step(self) -> None:
        """Forgets the last gradients and gathers the parameters."""
        for parameter in self.parameters.values():
            parameter.grad = None
        self._gather()

    def _gather(self) -> None:
        for shard in self._shards:
            shard.unshard()

    def __call__(self, batch: Any) -> dict[str, LossSum]:
        return self._root(batch)

    def finish_backward(self) -> list[Tensor]:
        """Sums gradients over ranks and gives them (sharded as the parameters). A parameter that no sample of any rank
        touched has a gradient of zero, so that all ranks agree and the optimiser treats it alike everywhere."""
        for parameter in self._registered().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._shards:
            root = cast("FSDPModule", self._root)
            root.set_requires_gradient_sync(True)
            root.set_reshard_after_backward(True)
            self._root(None, torch.zeros(1, device=self.device, requires_grad=True)).backward(
                torch.zeros(1).to(self.device)
            )
            root.set_requires_gradient_sync(False)
            root.set_reshard_after_backward(False)
        return [cast(Tensor, parameter.grad) for parameter in self.parameters.values()]

    def abandon_step(self) -> None:
        """Drops gathered parameters and all gradients: the parameters are as before the step."""
        for parameter in self._registered().values():
            parameter.grad = None
        for shard in self._shards:
            shard.reshard()
        for parameter in self.parameters.values():
            parameter.grad = None

    @contextmanager
    def whole(self, weights: Mapping[str, Tensor] | None) -> Iterator[Method]:
        """The method with whole parameters for inference, in eval mode, with `weights` (sharded alike) for its own."""
        module = cast(nn.Module, self.method)
        modes = [(part, part.training) for part in module.modules()]
        kept = {name: local(p.detach()).clone() for name, p in self.parameters.items()} if weights else {}
        if weights:
            self._overwrite({name: local(weight) for name, weight in weights.items()})
        self._gather()
        module.eval()
        try:
            with torch.no_grad():
                yield self.method
        finally:
            for part, mode in modes:
                part.training = mode
            for shard in self._shards:
                shard.reshard()
            self._overwrite(kept)

    @torch.no_grad()
    def _overwrite(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            local(self.parameters[name]).copy_(value)


def _check_who_trains(module: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
    if not trained:
        raise ValueError("the method trains nothing; check the recipe's freeze_ and vision_tower settings")
    stopped = [name for name, parameter in trained.items() if not parameter.requires_grad]
    if stopped:
        raise ValueError(f"these parameters are to be trained but take no gradient: {', '.join(stopped)}")
    known = set(trained.values())
    loose = [name for name, p in module.named_parameters() if p.requires_grad and p not in known]
    if loose:
        raise ValueError(f"these parameters take gradients but are not among those trained: {', '.join(loose)}")


def _find_places(module: nn.Module, trained: Mapping[str, nn.Parameter]) -> dict[str, tuple[nn.Module, str]]:
    """Where each trained parameter is registered: FSDP2 puts another object there when it shards or gathers."""
    places = {
        parameter: (part, attribute)
        for part in module.modules()
        for attribute, parameter in part.named_parameters(recurse=False)
    }
    missing = [name for name, parameter in trained.items() if parameter not in places]
    if missing:
        raise ValueError(f"these trained parameters belong to no submodule of the method: {', '.join(missing)}")
    return {name: places[parameter] for name, parameter in trained.items()}


def move_to(value: Any, device: torch.device) -> Any:
    """A batch on a device: tensors within dataclasses, dicts, lists and tuples, or whatever has its own `to`."""
    if device.type == "cpu":
        return value

    def move(item: Any) -> Any:
        return move_to(item, device)

    if hasattr(value, "to"):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: move(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {key: move(item) for key, item in value.items()}
    if isinstance(value, list):
        return [move(item) for item in value]
    if isinstance(value, tuple):
        items = [move(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def collect_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, whole; every rank must call it, and only rank 0 gets them (the others an empty dict)."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        full = cast("DTensor", tensor).full_tensor() if _is_sharded(tensor) else tensor
        if distributed.is_main():
            whole[name] = full.to("cpu", copy=True)
    return whole


@torch.no_grad()
def assign_whole(targets: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Overwrites whole or sharded tensors with whole ones, without communication."""
    for name, target in targets.items():
        value = whole[name].to(local(target).device)
        if _is_sharded(target):
            value = _shard_like(value, cast("DTensor", target))
        local(target).copy_(value)


def _is_sharded(tensor: Tensor) -> bool:
    return local(tensor) is not tensor


def _shard_like(whole: Tensor, target: DTensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local()
