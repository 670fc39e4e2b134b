"""What callbacks cannot reach: learned projectors in the optimizer, and resuming exactly."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed, nn
from torch.utils.data import RandomSampler
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from distill.callbacks import Distillation, PreparedDistillation
from distill.peers import MutualLearning, PreparedPeers
from distill.precision import Float32Criterion, cpu_bfloat16, trains_in_cpu_bfloat16
from distill.ranks import RankedTrainer, average_gradients, gather
from distill.state import (
    STATE_FILE,
    capture_randomness,
    capture_state,
    read_state,
    restore_gradients,
    restore_randomness,
    restore_weights,
    write_state,
)
from distill.views import AugmentedViews, ViewSampler, show_views

__all__ = ["COPY_SUFFIX", "DistillationTrainer"]

#: Ends the names of copies that exist only while a finished run is validated.
COPY_SUFFIX: Final = "-stripped.pt"
#: A fresh projector must follow the student, not lead it: at the student's rate it is still nearly random after
#: dozens of steps, and until it has settled its gradient says nothing about the teacher.
_PROJECTOR_RATE: Final = 10.0
_TRAINING_ONLY: Final = ("val/kd_", "val/peer_")


class DistillationTrainer(RankedTrainer):
    """Trains a detector as ultralytics does; distils when a :class:`Distillation` is among its callbacks.

    With a :class:`MutualLearning` it trains peers beside the student. Without either it is the plain baseline with the
    same data order and the same resuming. Found by its module name in the processes of a multi-GPU training, where the
    callbacks arrive pickled.

    Differences from ``DetectionTrainer``: the shuffling of an epoch depends on seed and epoch alone; projectors
    form one more parameter group from the start; ``last.pt`` and ``best.pt`` are replaced, never half-written;
    ``state.pt`` beside them makes a resumed run on the CPU equal the uninterrupted one bit for bit; and ``amp=bf16``
    works on the CPU as well, in channels-last, which is what its bfloat16 convolutions are fast in.
    """

    prepared_distillation: PreparedDistillation | PreparedPeers | None = None
    _resumed: dict[str, Any] | None = None
    _batches_since_step = 0
    _catching_up = False
    _accumulate = 1
    _view_sampler: ViewSampler | None = None
    _randomness: Sequence[dict[str, Any]] = ()

    @property
    def state_file(self) -> Path:
        """Where the exact state lies."""
        return Path(self.wdir) / STATE_FILE

    @property
    def projectors(self) -> nn.Module:
        """What the distillation losses learn, or the peers; an empty module when there is nothing."""
        return self.prepared_distillation.learned if self.prepared_distillation else nn.ModuleDict()

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step.

        ultralytics keeps its place in a local variable and, resumed, steps at the first batch. Reading 1 until the
        first step makes it offer a step at every batch, and ``optimizer_step`` takes the one that is due.
        """
        return 1 if self._catching_up else self._accumulate

    @accumulate.setter
    def accumulate(self, value: int) -> None:
        self._accumulate = value

    def setup_model(self) -> Any:
        """Build the model as ultralytics does, in channels-last for bfloat16 on the CPU."""
        checkpoint = super().setup_model()
        if self._channels_last_on_cpu():
            self.model.to(memory_format=torch.channels_last)  # in place
        return checkpoint

    def _setup_train(self) -> None:
        super()._setup_train()
        if trains_in_cpu_bfloat16(self):
            model = unwrap_model(self.model)
            model.criterion = Float32Criterion(getattr(model, "criterion", None) or model.init_criterion())

    def _do_train(self) -> None:
        with cpu_bfloat16():
            super()._do_train()

    def _channels_last_on_cpu(self) -> bool:
        return trains_in_cpu_bfloat16(self) and self.args.channels_last is not False

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build ultralytics' data set, for training in a finite number of views where that was asked."""
        dataset = super().build_dataset(img_path, mode, batch)
        distillation = self._distillation()
        if mode == "train" and distillation is not None and distillation.options.views:
            return AugmentedViews(dataset, distillation.options.views, self.args.seed)
        return dataset

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Build ultralytics' loader, and let it show the views in turn."""
        loader = super().get_dataloader(*args, **kwargs)
        if isinstance(loader.dataset, AugmentedViews):
            self._view_sampler = show_views(loader)
        return loader

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self._view_sampler is not None:  # what was read ahead is thrown away: the epoch begins again
            self._view_sampler.next_epoch = self.epoch

    def _distillation(self) -> Distillation | None:
        attached = self.callbacks["on_pretrain_routine_end"]
        return next((c for c in attached if isinstance(c, Distillation)), None)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build ultralytics' optimizer and add the projectors as its last group, before the scheduler exists."""
        build = super().build_optimizer
        optimizer: torch.optim.Optimizer = build(model, *args, **kwargs)
        for attached in self.callbacks["on_pretrain_routine_end"]:
            if isinstance(attached, MutualLearning):
                self.prepared_distillation = peers = attached.prepare(self)
                peers.add_to(optimizer, lambda network: build(network, *args, **kwargs))
        distillation = self._distillation()
        if distillation is None:
            return optimizer
        self.prepared_distillation = distillation.prepare(self)
        parameters = list(self.projectors.parameters())
        if self.world_size > 1:
            for parameter in parameters:  # ranks are seeded apart and would start from different projectors
                distributed.broadcast(parameter.data, src=0)
        if parameters:
            weights = next(g for g in optimizer.param_groups if g.get("param_group") in {"weight", "muon"})
            settings = {k: v for k, v in weights.items() if k not in {"params", "initial_lr", "use_muon"}}
            rate = min(g["lr"] for g in optimizer.param_groups)  # MuSGD triples it for parts of the head
            settings |= {"lr": rate * _PROJECTOR_RATE, "param_group": "weight"}
            optimizer.add_param_group({**settings, "params": parameters})
        return optimizer

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Prepare a training batch and count it."""
        self._batches_since_step += 1
        prepared: dict[str, Any] = super().preprocess_batch(batch)
        if self._channels_last_on_cpu():
            prepared["img"] = prepared["img"].contiguous(memory_format=torch.channels_last)
        return prepared

    def optimizer_step(self) -> None:
        """Step when one is due, with the projectors' gradients averaged over ranks as DDP does the model's."""
        if self._catching_up and self._batches_since_step < self._accumulate:
            return
        self._catching_up = False
        self._batches_since_step = 0
        average_gradients(self.projectors.parameters())
        super().optimizer_step()

    def run_callbacks(self, event: str) -> None:
        """Run an event's callbacks, after this trainer's own preparation of an epoch."""
        if event == "on_train_epoch_start":
            self._start_epoch()
        elif event == "on_train_epoch_end" and self.world_size > 1:
            # Pending gradients are saved by the first process for all, and what is random, by it for each.
            average_gradients(self.projectors.parameters())
            self._randomness = gather(capture_randomness(self.train_loader))
        super().run_callbacks(event)

    def label_loss_items(self, loss_items: dict[str, Any] | None = None, prefix: str = "train") -> Any:
        """Label loss items as ultralytics does, without ``val/kd_*``: no teacher or peer validates, they would be 0."""
        labelled = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return labelled
        if isinstance(labelled, dict):
            return {k: v for k, v in labelled.items() if not k.startswith(_TRAINING_ONLY)}
        return [k for k in labelled if not k.startswith(_TRAINING_ONLY)]

    def progress_string(self) -> str:
        """The progress bar's header; names cut to 10 characters, for ultralytics' columns are 11 wide."""
        names = ("Epoch", "GPU_mem", *self.loss_names, "Instances", "Size")
        return "\n" + "".join(f"{name[:10]:>11}" for name in names)

    def save_model(self) -> bool:
        """Save ``last.pt`` and ``best.pt`` by replacing them, then the exact state they belong to.

        A kill in between leaves the state of the epoch before, from which this epoch is repeated identically.
        """
        finals = [Path(self.wdir) / "best.pt", Path(self.wdir) / "last.pt"]
        partials = [path.with_suffix(".pt.partial") for path in finals]
        period = int(self.args.save_period)
        self.save_period = 0  # ultralytics would keep an epoch with its optimizer
        try:
            self.best, self.last = partials
            super().save_model()
            for partial, final in zip(partials, finals, strict=True):
                if partial.exists():
                    partial.replace(final)
        finally:
            self.best, self.last = finals
            for partial in partials:
                partial.unlink(missing_ok=True)
        if period > 0 and self.epoch % period == 0:
            self._keep_epoch(Path(self.wdir) / f"epoch{self.epoch}.pt")
        state = capture_state(self, self.projectors, self._batches_since_step)
        write_state({**state, "ranks": self._randomness}, self.state_file)
        return True

    def _keep_epoch(self, kept: Path) -> None:
        """Keep ``last.pt`` as a checkpoint that can teach: the averaged weights, without the optimizer."""
        partial = kept.with_suffix(".pt.partial")
        try:
            strip_optimizer(self.last, s=str(partial))
            partial.replace(kept)
        finally:
            partial.unlink(missing_ok=True)

    def final_eval(self) -> None:
        """Strip and validate copies, then put them in place: ultralytics rewrites the checkpoints where they lie."""
        if RANK != -1:  # other ranks read the file that rank 0 strips: leave them ultralytics' order
            super().final_eval()
            return
        finals = [path for path in (Path(self.best), Path(self.last)) if path.exists()]
        copies = [path.with_name(f"{path.stem}{COPY_SUFFIX}") for path in finals]
        for final, copy in zip(finals, copies, strict=True):
            shutil.copyfile(final, copy)
        best, last = self.best, self.last
        self.best, self.last = (Path(p).with_name(f"{Path(p).stem}{COPY_SUFFIX}") for p in (best, last))
        try:
            super().final_eval()
            for final, copy in zip(finals, copies, strict=True):
                copy.replace(final)
        finally:
            self.best, self.last = best, last
            for copy in copies:
                copy.unlink(missing_ok=True)

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Continue after the epoch of the exact state, which is the one before ``last.pt``'s at worst."""
        if ckpt is None or not self.resume:
            return
        state = read_state(self.state_file)
        super().resume_training({**ckpt, "epoch": state["epoch"]})
        if RANK in {-1, 0}:
            _drop_rows_after(self.csv, epoch=state["epoch"] + 1)
        self._resumed = state

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Load what ultralytics saved, then the same in full precision: on resume, and after a NaN."""
        state = read_state(self.state_file)
        exact = ("optimizer", "updates", "scaler", "best_fitness", "stopper")
        super()._load_checkpoint_state({**ckpt, **{key: state[key] for key in exact}})
        restore_weights(self, self.projectors, state)

    def _start_epoch(self) -> None:
        """Fix the order of this epoch's images and, once after resuming, put gradients and randomness back."""
        loader = self.train_loader
        if not loader.num_workers and isinstance(loader.sampler, RandomSampler):
            # A fresh iterator over a freshly seeded sampler: the order no longer depends on how many epochs were
            # drawn before. The loader's own generator, whose draws nobody uses here, is parted from the sampler's.
            loader.reset()
            loader.generator = torch.Generator()
            loader.sampler.generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.epoch)
        if self._view_sampler is not None and loader.iterator is None:  # else it has read ahead, and counts itself
            self._view_sampler.next_epoch = self.epoch
        if self._resumed is not None:
            restore_gradients(self, self.projectors, self._resumed)
            others = self._resumed.get("ranks", [])
            restore_randomness(loader, others[RANK] if 0 < RANK < len(others) else self._resumed)
            self._batches_since_step = self._resumed["batches_since_step"]
            self._catching_up = True
            self._resumed = None


def _drop_rows_after(results: Path, epoch: int) -> None:
    """Remove rows of results.csv past ``epoch``, which a killed run wrote before its state."""
    if not results.exists():
        return
    with results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    kept = [row for index, row in enumerate(rows) if index == 0 or (row and int(row[0]) <= epoch)]
    partial = results.with_name(f".{results.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(kept)
    partial.replace(results)
