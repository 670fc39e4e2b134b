"""The part that several processes started by ``torchrun`` have in one training; one process alone needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn

from distill.errors import DistillError

__all__ = ["Processes", "joined"]


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is.

    Attributes:
        rank: 0 for the first, which alone writes and reports.
        world: how many there are.
        device: this process's own.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes."""
        if self.world == 1:
            return module
        # A hint stage leaves later layers without gradient, a frozen phase all but the last.
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def agree(self, path: Path) -> Path:
        """The first process's path, in all of them."""
        if self.world == 1:
            return path
        shared = [str(path)]
        distributed.broadcast_object_list(shared, src=0, device=self.device)
        return Path(shared[0])

    def share(self, numbers: dict[str, float]) -> dict[str, float]:
        """The first process's numbers, in all of them, so that all decide alike."""
        if self.world == 1:
            return numbers
        shared = [numbers]
        distributed.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, gloo on the CPU and nccl on GPUs; alone otherwise.

    Args:
        device: ``cpu``, a CUDA index, or empty for the first GPU where there is one.

    Raises:
        DistillError: for a device that is not here.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local, world)
    if world == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local: int, world: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (not name and not count):
        return torch.device("cpu")
    number = local if world > 1 else name.removeprefix("cuda:") or "0"
    if not str(number).isdecimal() or int(number) >= count:
        raise DistillError(
            f"device {name!r} is not here: this machine has the cpu and {count} CUDA devices; give --device cpu"
            + (" or --device 0" if count else "")
        )
    return torch.device("cuda", int(number))
