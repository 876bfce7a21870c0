"""Several processes on one run (torchrun): who does what, what is added up, and models split among processes.

Data parallel over groups: a group stays in one process, every process makes the same decisions from the same seeds, and
once per step gradients and token counts are added up by hand, so that a process without a live group may skip its
forward passes. With FSDP2 weights, gradients and optimizer are split instead; then every process must make equally many
passes, and completions are written by a whole copy of the weights. Without torchrun everything here does nothing.
Not here: what a step is (sft.py, grpo.py).
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.config import ConfigRefused, TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run. `Ranks()` is a run of one."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every `count`-th, so that the parts differ by one at most."""
        return items[self.rank :: self.count]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number added up over all processes."""
        return [float(sum(column)) for column in zip(*self.gather(list(values)), strict=True)]

    def most(self, value: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.gather(value))

    def any(self, flag: bool) -> bool:
        """Whether it holds in one process at least."""
        return any(self.gather(flag))

    def first(self, value: T) -> T:
        """The first process's value: clocks differ, and decisions must not."""
        return self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def interleave(self, parts: Sequence[T]) -> list[T]:
        """All processes' parts of a list that `share` took apart, in its order."""
        every = self.gather(list(parts))
        return [every[place % self.count][place // self.count] for place in range(sum(map(len, every)))]

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add every gradient up over all processes; one that is missing here counts as 0.

        Split ones are added up already. A few large messages rather than one per parameter.
        """
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            if not _is_split(parameter):
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for together in by_dtype.values():
            for some in _buckets(together):
                flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
                dist.all_reduce(flat)
                for parameter, part in zip(some, torch.split(flat, [p.numel() for p in some]), strict=True):
                    parameter.grad = part.view_as(parameter)

    def same_weights(self, model: torch.nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.count > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)


ALONE = Ranks()
_BUCKET = 1 << 26  # elements of one message


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    some: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if some and sum(p.numel() for p in some) + parameter.numel() > _BUCKET:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


@contextlib.contextmanager
def joined_ranks(config: TrainingConfig) -> Iterator[Ranks]:
    """The processes torchrun started, joined over NCCL on CUDA and gloo elsewhere; a run of one without it.

    ConfigRefused when `fsdp` is asked for in a run of one.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        if config.fsdp:
            raise ConfigRefused("fsdp: expected several processes: torchrun --nproc-per-node 2 -m trainer ...")
        yield Ranks()
        return
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Ranks(dist.get_rank(), count)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def split_model(model: Any) -> None:
    """Split every parameter among the processes (FSDP2): each text layer and vision block is gathered when it is used.

    The model's own forward is not what the trainer calls (shared_prefix.py calls the inner model and the head), so a
    method `run_inside` is registered, inside of which all of it may be called.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    blocks = torch.nn.ModuleList
    for name, module in list(model.named_modules()):
        if isinstance(module, blocks) and name.rpartition(".")[2] in ("layers", "layer", "blocks"):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def run_inside(self: Any, function: Callable[..., T], *given: Any) -> T:
        return function(*given)

    model.run_inside = types.MethodType(run_inside, model)
    register_fsdp_forward_method(model, "run_inside")


def is_split(model: torch.nn.Module) -> bool:
    """Whether `split_model` was called on it."""
    return hasattr(model, "run_inside")


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, gathered where they are split. Every process must call it."""
    parameters = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    whole: dict[object, torch.Tensor] = {}  # weights that are tied stay one tensor
    for name, value in model.state_dict().items():
        key = parameters.get(name, name)
        if key not in whole:
            whole[key] = _whole(value)
    return {name: whole[parameters.get(name, name)] for name in model.state_dict()}


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Put the weights of a split model into a whole one. Every process must call it."""
    with torch.no_grad():
        ours = target.state_dict()
        for name, value in source.state_dict().items():
            ours[name].copy_(_whole(value))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as one process alone would have it. Every process must call it."""
    told: dict[str, Any] = optimizer.state_dict()
    # Numbers of parameters, as the optimizer counts them, stay what they are.
    return {
        **told,
        "state": {
            number: {key: _whole(value) if isinstance(value, torch.Tensor) else value for key, value in kept.items()}
            for number, kept in told["state"].items()
        },
    }


def split_like(optimizer: torch.optim.Optimizer, told: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `optimizer_state`: each tensor split as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(_is_split(parameter) for parameter in parameters):
        return told
    from torch.distributed.tensor import distribute_tensor

    state: dict[int, dict[str, Any]] = {}
    for number, kept in told["state"].items():
        parameter: Any = parameters[number]
        state[number] = {
            key: distribute_tensor(value, parameter.device_mesh, parameter.placements)
            if _is_split(parameter) and isinstance(value, torch.Tensor) and value.dim()
            else value
            for key, value in kept.items()
        }
    return {**told, "state": state}


def _is_split(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _whole(tensor: Any) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if _is_split(tensor) else tensor
    return whole
