"""Contrastive distillation: an image's two embeddings belong together, others' do not."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["ContrastiveDistillation"]

_WIDTH: Final = 128
_TEMPERATURE: Final = 0.07
_NEGATIVES: Final = 16_384
_MOMENTUM: Final = 0.5
_UNSEEN: Final = -1


class ContrastiveDistillation(nn.Module):
    """Contrastive representation distillation (CRD, Tian, Krishnan and Isola 2020, section 3.1).

    Learned linear layers g map the embeddings of both networks to 128 dimensions and length 1. A critic h must tell
    the pair of one image (joint) from N pairs of different images (product of marginals):

        L = -mean over images of [ log h(t, s) + sum over N negatives of log(1 - h(t, s')) ]
        h(t, s) = e / (e + N / M),   e = exp( g_t(t) . g_s(s) / 0.07 ) / Z

    once with the student's embedding against teachers' of other images and once the other way round. M is the size of
    the training set. Z is the mean of the exponential, times M, measured in the first batch and then constant (Wu et
    al. 2018, section 3.2, as in the authors' code). Negatives are remembered embeddings of images of *other* classes
    from a memory of both networks' embeddings, which follows the training with momentum 0.5.

    Two differences to the authors' code. A batch shares its candidates, drawn anew each time, and each image leaves
    out those of its own class; N is the number that remains. That moves batch-many times less memory than
    candidates per image. (A candidate whose own label was not yet seen may serve any class until it is.) And the
    positive is the other network's present embedding, as in the equation, not the remembered one.

    The memory and Z are buffers: they are saved and restored with the loss. They change in training mode only.
    Unlike other losses it is not 0 for identical activations: it measures how well pairs are told apart, which needs
    g_t, g_s and the memory to be trained. It is lower for matched than for mismatched pairs once g_t and g_s agree.

    The temperature is the paper's 0.07, not ``--temperature``, which speaks of logits.
    """

    scale: Tensor
    student_memory: Tensor
    teacher_memory: Tensor
    known_labels: Tensor

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Build the two embeddings and a memory of ``train_size`` rows for each; the temperature does not apply."""
        super().__init__()
        self.student_embedding = nn.Linear(pair.student_dim, _WIDTH)
        self.teacher_embedding = nn.Linear(pair.teacher_dim, _WIDTH)
        self.register_buffer("student_memory", F.normalize(torch.randn(pair.train_size, _WIDTH), dim=1))
        self.register_buffer("teacher_memory", F.normalize(torch.randn(pair.train_size, _WIDTH), dim=1))
        self.register_buffer("known_labels", torch.full((pair.train_size,), _UNSEEN))
        self.register_buffer("scale", torch.zeros(2))  # Z of (student, teacher) anchors; 0 until measured
        self.negatives = min(_NEGATIVES, pair.train_size)

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Contrast ``embedding`` (batch, dimensions), by ``labels`` and ``indices``; a float32 scalar, in nats."""
        with torch.autocast(student.embedding.device.type, enabled=False):
            return self._loss(student, teacher)

    def _loss(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        s = _embed(self.student_embedding, student.embedding)
        t = _embed(self.teacher_embedding, teacher.embedding.detach())
        candidates = torch.randint(len(self.known_labels), (self.negatives,), device=s.device)
        candidate_labels = self.known_labels[candidates]
        usable = (candidate_labels != student.labels[:, None]) & (candidates != student.indices[:, None])
        loss = self._contrast(0, s, t, self.teacher_memory[candidates], usable)
        loss = loss + self._contrast(1, t, s, self.student_memory[candidates], usable)
        if self.training:
            self._remember(s.detach(), t.detach(), student.labels, student.indices)
        return loss

    def _contrast(self, side: int, anchors: Tensor, positives: Tensor, negatives: Tensor, usable: Tensor) -> Tensor:
        """The loss of anchors (batch, 128) against their positives and the usable among the negatives (N, 128)."""
        log_pull = (anchors * positives).sum(dim=1) / _TEMPERATURE  # (batch,)
        log_push = anchors @ negatives.T / _TEMPERATURE  # (batch, N)
        log_scale = self._log_scale(side, log_pull.detach(), log_push.detach(), usable)
        # log of N / M in h = 1 / (1 + (N / M) / e): both terms are then softplus, which cannot overflow.
        prior = usable.sum(dim=1).clamp(min=1).log() - math.log(len(self.known_labels))
        pull = F.softplus(prior - (log_pull - log_scale))
        push = F.softplus((log_push - log_scale) - prior[:, None])
        return (pull + (push * usable).sum(dim=1)).mean()

    def _log_scale(self, side: int, log_pull: Tensor, log_push: Tensor, usable: Tensor) -> Tensor:
        """Log of Z for these anchors, measured at the first batch of the training."""
        if float(self.scale[side]) > 0:
            return self.scale[side].log()
        total = log_pull.exp().sum() + (log_push.exp() * usable).sum()
        measured = total / (len(log_pull) + usable.sum()) * len(self.known_labels)
        if self.training:
            self.scale[side] = measured
        return measured.log()

    @torch.no_grad()
    def _remember(self, student: Tensor, teacher: Tensor, labels: Tensor, indices: Tensor) -> None:
        student, teacher, labels, indices = (_of_all_processes(part) for part in (student, teacher, labels, indices))
        self.known_labels[indices] = labels
        for memory, fresh in ((self.student_memory, student), (self.teacher_memory, teacher)):
            memory[indices] = F.normalize(_MOMENTUM * memory[indices] + (1 - _MOMENTUM) * fresh, dim=1)


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    """Embed at length 1, in the layer's precision."""
    return F.normalize(layer(features.to(layer.weight.dtype)), dim=1)


def _of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes of a training, equally many of each: buffers are the first process's in all of them,
    and it would never remember what the others saw."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
