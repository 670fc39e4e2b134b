"""Deep mutual learning: students that train side by side, each learning from the labels and from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import unwrap_model

from distill.callbacks import Loudness, assigned_boxes
from distill.errors import DistillError
from distill.losses import LOGIT_LOSSES, Activations, build_losses
from distill.schedules import Schedule
from distill.teacher import check_pair, find_weights, head_pair, load_weights, student_model

__all__ = ["MutualLearning", "PeerCriterion", "PreparedPeers", "check_peers", "parse_peers", "peer_losses"]

#: As ultralytics clips the student's gradient.
_LARGEST_GRADIENT: Final = 10.0


@dataclass(frozen=True)
class MutualLearning:
    """The callback for ``on_pretrain_routine_end`` of a training with peers; it needs ``DistillationTrainer``.

    Deep mutual learning (Zhang et al. 2018, section 3.3): each of K students minimises its own task loss and the mean
    of its distillation losses from the K - 1 others, whose outputs are constants to it. All see the same batches and
    step together. Only the student is averaged, validated, saved and published; the others live in the optimizer and
    in ``state.pt``, as projectors do.

    Attributes:
        peers: architectures or checkpoints of the others, as ``--student``.
        weights: weight of each loss, by name; of ``LOGIT_LOSSES``.
        temperature: T of the losses.
        seed: of the training; each peer's first weights depend on it and on the peer's number.
        schedule: the factor on the weights by epoch.
    """

    peers: tuple[str, ...]
    weights: Mapping[str, float]
    temperature: float
    seed: int
    schedule: Schedule = field(default_factory=Schedule)

    def __call__(self, trainer: Any) -> None:
        """Wrap the student's criterion. The average of the weights exists by now and stays clean."""
        prepared = getattr(trainer, "prepared_distillation", None)
        if prepared is None:
            raise DistillError("peers have weights of their own to train: train with trainer=DistillationTrainer")
        model = unwrap_model(trainer.model)
        model.criterion = PeerCriterion(model.init_criterion(), prepared, Loudness(self.schedule, trainer))

    def prepare(self, trainer: Any) -> PreparedPeers:
        """Build the peers beside the trainer's student, on its device.

        Raises:
            DistillError: when a peer cannot be built or does not fit the student.
        """
        model = unwrap_model(trainer.model)
        peers = []
        for number, name in enumerate(self.peers, start=1):
            peer = _seeded_peer(name, trainer.data, self.seed * 1_000_003 + number)
            peer.nc, peer.args = trainer.data["nc"], trainer.args
            for key, parameter in peer.named_parameters():
                parameter.requires_grad = ".dfl" not in key  # frozen in the student too
            peers.append(peer.to(trainer.device).train())
        return PreparedPeers(
            peers=nn.ModuleList(peers),
            criteria=[peer.init_criterion() for peer in peers],  # type: ignore[operator]
            losses=build_losses(self.weights, head_pair(peers[0], model), self.temperature).to(trainer.device),
            weights=dict(self.weights),
        )


@dataclass(frozen=True)
class PreparedPeers:
    """Peers on their device, their own criteria, and the losses between them."""

    peers: nn.ModuleList
    criteria: list[Any]
    losses: nn.ModuleDict
    weights: dict[str, float]

    @property
    def learned(self) -> nn.Module:
        """What trains with the student without being a part of it."""
        return self.peers

    def add_to(self, optimizer: torch.optim.Optimizer, like_student: Callable[[nn.Module], Any]) -> None:
        """Give each peer the parameter groups that a student has, and clip its gradient as a student's.

        Args:
            optimizer: the student's.
            like_student: builds the optimizer that a network would have as the student.
        """
        for peer in self.peers:
            for group in like_student(peer).param_groups:
                optimizer.add_param_group(group)
        # Before a step gradients are unscaled; ultralytics clips the student's alone.
        optimizer.register_step_pre_hook(lambda *_: self._clip())

    def _clip(self) -> None:
        for peer in self.peers:
            nn.utils.clip_grad_norm_(peer.parameters(), max_norm=_LARGEST_GRADIENT)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Copy to nothing: peers are never part of a checkpoint."""


class PeerCriterion:
    """The criterion of a student among peers, called as ultralytics calls one.

    Returns the loss vector times the batch size, and the named parts: those of the student, ``kd_NAME`` as the mean of
    what it learns from each peer, and ``peer_K``, all that peer K learns from labels and from the others.

    A copy of it is the plain criterion, as of :class:`distill.callbacks.DistillationCriterion`.
    """

    def __init__(self, plain: Any, prepared: PreparedPeers, loudness: Callable[[], float]) -> None:
        """Wrap the student's criterion ``plain``; ``loudness`` gives the factor on all weights now."""
        self.plain = plain
        self.prepared = prepared
        self.loudness = loudness

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (box, cls, dfl and one element per loss and per peer; its named parts)."""
        if isinstance(outputs, tuple):  # evaluation: the peers have no part in it
            plain: tuple[Tensor, dict[str, Tensor]] = self.plain(outputs, batch)
            return plain
        answers = [outputs, *(peer(batch["img"]) for peer in self.prepared.peers)]
        learners: list[Activations] = []
        tasks: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for criterion, answer in zip((self.plain, *self.prepared.criteria), answers, strict=True):
            targets, loss, named = criterion.get_assigned_targets_and_loss(answer, batch)
            learners.append(Activations.of_head(answer, assigned_boxes(targets, criterion.reg_max)))
            tasks.append(loss)
            parts = parts or dict(named)
        lessons = [self._lessons(own, learners) for own in range(len(learners))]
        own = torch.stack(list(lessons[0].values()))
        others = [
            task.sum() + torch.stack(list(lesson.values())).sum()
            for task, lesson in zip(tasks[1:], lessons[1:], strict=True)
        ]
        parts |= {f"kd_{name}": value.detach() for name, value in lessons[0].items()}
        parts |= {f"peer_{number}": value.detach() for number, value in enumerate(others, start=1)}
        return torch.cat([tasks[0], own, torch.stack(others)]) * batch["img"].shape[0], parts

    def _lessons(self, own: int, learners: Sequence[Activations]) -> dict[str, Tensor]:
        """What one learns from the others, by loss: the mean over them, weighted."""
        factor = self.loudness()
        others = [replace(other.detached(), assigned=None) for k, other in enumerate(learners) if k != own]
        return {
            name: factor * weight * torch.stack([self.prepared.losses[name](learners[own], o) for o in others]).mean()
            for name, weight in self.prepared.weights.items()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy of the plain criterion."""
        return deepcopy(self.plain, memo)


def parse_peers(text: str, student: str) -> tuple[str, ...]:
    """Read ``--peers``: how many more of the student's architecture, or their names joined by commas.

    Raises:
        DistillError: for no peers, or peers that would start as copies of each other and stay so: they see the same
            batches, so nothing would ever part them.
    """
    peers = (student,) * int(text) if text.isdecimal() else tuple(name.strip() for name in text.split(","))
    if not all(peers) or not peers:
        raise DistillError(f"--peers {text!r}: expected a number from 1 on, or names joined by commas")
    checkpoints = [name for name in (student, *peers) if Path(name).suffix == ".pt"]
    if twice := next((name for name in checkpoints if checkpoints.count(name) > 1), None):
        raise DistillError(
            f"peers that start from one checkpoint, {twice}, would stay equal: start from an architecture such as "
            "yolov8n.yaml, or name other checkpoints with --peers"
        )
    return peers


def peer_losses(losses: Mapping[str, float], *, given: bool) -> dict[str, float]:
    """The losses that peers can have: those on logits.

    Args:
        losses: by name.
        given: whether they were asked for, and not a recipe's, of which the rest is left out.

    Raises:
        DistillError: when others were asked for, or none is left.
    """
    fitting = {name: weight for name, weight in losses.items() if name in LOGIT_LOSSES}
    if not fitting or (given and len(fitting) < len(losses)):
        wrong = ", ".join(name for name in losses if name not in LOGIT_LOSSES) or "none"
        raise DistillError(f"peers cannot learn by {wrong}: give --losses out of {', '.join(LOGIT_LOSSES)}")
    return fitting


def check_peers(student: nn.Module, peers: Iterable[str], data: Mapping[str, Any]) -> None:
    """Refuse peers that cannot teach this student, or be taught by it.

    Raises:
        DistillError: naming the peer and the two values that differ.
    """
    for name in peers:
        if type(student.model[-1]) is not Detect:  # type: ignore[index]
            raise DistillError(
                "--peers are detectors: give a student such as yolov8n.yaml, or a --teacher in their place"
            )
        peer = student_model(name, data)
        peer.names = data["names"]
        try:
            check_pair(peer, student, data)
        except DistillError as error:
            raise DistillError(
                f"peer {name}: {str(error).replace('teacher and student', 'peer and student')}"
            ) from error


def _seeded_peer(name: str, data: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a peer without drawing from the generators that the training draws from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peer = student_model(name, data)
    peer.names = data["names"]
    if Path(name).suffix == ".pt":
        peer.load(load_weights(find_weights(name, "peer"), "peer"))  # type: ignore[operator]
    return peer
