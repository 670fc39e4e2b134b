"""Training in several processes, on the CPU too, on one machine or more; none waits for another without end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
from torch import distributed, nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOCAL_RANK, RANK
from ultralytics.utils.torch_utils import TORCH_2_13, strip_optimizer, torch_distributed_zero_first

from distill.errors import DistillError
from distill.recipe import Recipe

__all__ = [
    "FIRST",
    "RankedTrainer",
    "agreed",
    "agreed_folder",
    "average_gradients",
    "check_ranks",
    "gather",
    "named_loss",
    "own_devices",
]

T = TypeVar("T")

#: Whether this process writes and reports: the only one, or the first of several.
FIRST: Final = RANK in {-1, 0}
_WORLD: Final = int(os.environ.get("WORLD_SIZE", "1")) if RANK != -1 else 1
#: Longest wait for another process, in seconds: longer than any epoch's validation or the reading of a large data set.
_PATIENCE_S: Final = float(os.environ.get("EDGE_DISTILL_PATIENCE_S", "600"))
#: How torch words it when a process of the group is gone or silent: it has an exception class for some of them only.
_LOST: Final = ("gloo", "NCCL", "Connection", "timed out", "Timed out", "timeout", "Broken pipe")


class RankedTrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no types
    """A ``DetectionTrainer`` that knows how many processes it is one of, as ``torchrun`` set RANK and WORLD_SIZE.

    ultralytics 8.4 counts the GPUs named in ``device``, which is one machine's share of several machines, and nothing
    on the CPU. Here the processes are as many as WORLD_SIZE says, over nccl on GPUs and gloo on CPUs, and a process
    that waits longer than EDGE_DISTILL_PATIENCE_S (600 s) for another one gives up.
    """

    device: torch.device
    model: Any
    _ranks_on_cpu = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build ultralytics' trainer for this process."""
        super().__init__(*args, **kwargs)
        if RANK != -1:
            self.world_size = _WORLD

    def _setup_ddp(self) -> None:
        if self.device.type not in {"cpu", "cuda"}:
            super()._setup_ddp()
            return
        if self.device.type == "cuda":
            index = int(str(self.args.device).split(",")[LOCAL_RANK])
            self.device = torch.device("cuda", index)
            torch.cuda.set_device(index)
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # else the timeout is not kept
        backend = "nccl" if self.device.type == "cuda" and distributed.is_nccl_available() else "gloo"
        patience = timedelta(seconds=_PATIENCE_S)
        distributed.init_process_group(backend, timeout=patience, rank=RANK, world_size=self.world_size)

    def _setup_train(self) -> None:
        """Set up as ultralytics does, but on CPUs wrap the model later: it hands DDP the number of a GPU."""
        if self.device.type == "cpu" and self.world_size > 1:
            self._ranks_on_cpu, self.world_size = self.world_size, 1
            if self.args.amp != "bf16":
                self.args.amp = False  # which ultralytics finds out on the first process alone
        super()._setup_train()

    def _build_train_pipeline(self) -> None:
        if self._ranks_on_cpu:
            self.world_size, self._ranks_on_cpu = self._ranks_on_cpu, 0
            buffers: Any = {"forward_sync_buffers" if TORCH_2_13 else "broadcast_buffers": False}
            self.model = nn.parallel.DistributedDataParallel(self.model, find_unused_parameters=True, **buffers)
        super()._build_train_pipeline()

    def final_eval(self) -> None:
        """Strip the checkpoints and validate the best; on CPUs by the validation of an epoch.

        ultralytics validates a checkpoint on the process's GPU, and there is none.
        """
        if RANK == -1 or self.device.type != "cpu":
            super().final_eval()
            return
        with torch_distributed_zero_first(LOCAL_RANK):
            if FIRST:
                for path in (self.last, self.best):
                    strip_optimizer(path)
        best: Any = load_checkpoint(self.best)[0]
        self.ema.ema.load_state_dict(best.float().state_dict())
        self.metrics, _ = self.validate()
        self.epoch += 1  # as ultralytics logs it: a step of its own
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over processes, as DDP does those of the model; averaging twice changes nothing."""
    if not distributed.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def agreed(choose: Callable[[], T]) -> T:
    """What the first process chooses, in all of them; the others do not choose."""
    if not distributed.is_initialized():
        return choose()
    box = [choose() if RANK == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank, in the first process; nothing in the others."""
    values: list[Any] | None = [None] * distributed.get_world_size() if RANK == 0 else None
    distributed.gather_object(value, values, dst=0)
    return values or []


def check_ranks(batch: int, device: str) -> None:
    """Refuse a batch or device that the processes of ``torchrun`` cannot share.

    Raises:
        DistillError: when the batch is no multiple of the processes, or GPUs are named that do not fit them.
    """
    devices = device.split(",") if device not in {"", "cpu"} else []
    world = _WORLD if RANK != -1 else max(1, len(devices))
    if batch % world:
        raise DistillError(
            f"--batch {batch} cannot be shared by {world} processes: give a multiple, such as "
            f"{-(-batch // world) * world}"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(_WORLD)))
    if RANK != -1 and devices and len(devices) != here:
        raise DistillError(
            f"--device {device} names {len(devices)} GPUs for the {here} processes that torchrun started here: "
            "drop the flag, or name one for each"
        )


def agreed_folder(out: Path | None, recipe: Recipe) -> Path | None:
    """The run folder of a process that is not the first of several, which makes it; None for the others.

    Raises:
        DistillError: when several processes are to find a folder that nobody named, or to train one after another.
    """
    if RANK == -1:
        return None
    if out is None:
        raise DistillError("under torchrun give --out RUN: a new folder that all processes see")
    if recipe.assistants:
        raise DistillError("--assistants under torchrun: train each stage by itself, its teacher the one before")
    return None if FIRST else out


def own_devices(device: str) -> str:
    """The device setting for ultralytics: under ``torchrun``, as many GPUs of this machine as it has processes."""
    if RANK == -1 or device or not torch.cuda.is_available():
        return device
    return ",".join(str(i) for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", str(_WORLD)))))


@contextmanager
def named_loss(how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Turn the loss of another process into one line, and leave the group when the work is done.

    Raises:
        DistillError: when another process ended or was silent for too long.
    """
    try:
        yield
    except RuntimeError as error:
        if RANK == -1 or not any(word in str(error) for word in _LOST):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DistillError(
            f"process {RANK} of {_WORLD} lost another one, which ended or was silent for {_PATIENCE_S:g} s ({reason}): "
            f"look at the others' logs, then {how_to_continue()}"
        ) from error
    if distributed.is_available() and distributed.is_initialized() and RANK != -1:
        distributed.destroy_process_group()
