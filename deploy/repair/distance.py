"""How far a network's raw outputs lie from the float student's, where the student saw something.

The student is its own teacher: every part is zero when both agree, and needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deploy.bundle import OutputSpec


def output_distance(
    outputs: Sequence[OutputSpec], compared: Sequence[Tensor], student: Sequence[Tensor], reg_max: int
) -> Tensor:
    """One scalar in nats, the same for any number of images and cells.

    Class logits by the KL divergence of their Bernoulli distributions (Hinton et al. 2015), box logits by that of their
    DFL distributions (localization distillation, Zheng et al. 2022, equation 4), mask coefficients and prototypes by
    their relative squared error, a classifier's logits by the KL divergence of their softmax. What belongs to a cell
    counts by the best score there, the student's (for class logits the network's, if higher), and the sum is divided
    by the sum of the student's scores, at least 1 per image.

    Args:
        outputs: what the tensors are.
        compared: raw tensors of the network in question, (n, channels, h, w), or (n, classes).
        student: those of the float student, without gradients.
        reg_max: DFL bins per side.
    """
    pairs = list(zip(outputs, compared, student, strict=True))
    logits = [_softmax_divergence(met, expected, 1).mean() for spec, met, expected in pairs if spec.meaning == "logits"]
    if logits:
        return torch.stack(logits).sum()
    quality = {
        spec.stride: expected.amax(dim=1).sigmoid() for spec, _, expected in pairs if spec.meaning == "class"
    }  # stride to (n, h, w)
    images = pairs[0][2].shape[0]
    mass = torch.stack([one.sum() for one in quality.values()]).sum().clamp(min=float(images))
    parts = []
    for spec, met, expected in pairs:
        if spec.meaning == "class":
            # Also where the network sees what the student does not; but a thousand cells that both take for background
            # may not outweigh the few with objects.
            weight = torch.maximum(quality[spec.stride], met.detach().amax(dim=1).sigmoid())
            parts.append((_bernoulli_divergence(met, expected).sum(dim=1) * weight).sum() / mass)
        elif spec.meaning == "box":
            shape = (images, 4, reg_max, *met.shape[2:])
            divergence = _softmax_divergence(met.reshape(shape), expected.reshape(shape), 2).mean(dim=1)
            parts.append((divergence * quality[spec.stride]).sum() / mass)
        elif spec.meaning == "mask":
            error = (met - expected).square().mean(dim=1) * quality[spec.stride]
            parts.append(error.sum() / mass / expected.square().mean().clamp(min=1e-12))
        else:
            parts.append(relative_error(met, expected))
    return torch.stack(parts).sum()


def fisher_vector(
    outputs: Sequence[OutputSpec], student: Sequence[Tensor], reg_max: int, random: torch.Generator
) -> list[Tensor]:
    """A random vector about the raw outputs whose mean outer product is the second derivative of `output_distance`.

    So the mean square of its product with a small change of the outputs is twice the distance of that change. Signs
    are random, and of a softmax the vector is that of a label drawn from it less the probabilities (Martens 2014, "New
    insights and perspectives on the natural gradient method", section 5).

    Args:
        outputs: what the tensors are.
        student: raw tensors of the float student, (n, channels, h, w), or (n, classes).
        reg_max: DFL bins per side.
        random: draws it.

    Returns:
        One tensor for each output, of its shape.
    """
    quality = {
        spec.stride: raw.amax(dim=1).sigmoid()
        for spec, raw in zip(outputs, student, strict=True)
        if spec.meaning == "class"
    }
    images = student[0].shape[0]
    mass = torch.stack([one.sum() for one in quality.values()] or [torch.zeros(())]).sum().clamp(min=float(images))
    vectors = []
    for spec, raw in zip(outputs, student, strict=True):
        if spec.meaning == "logits":
            vector = _score(raw, 1, random) / images**0.5
        elif spec.meaning == "class":
            p = raw.sigmoid()
            vector = _signs(raw.shape, random) * (quality[spec.stride][:, None] * p * (1 - p) / mass).sqrt()
        elif spec.meaning == "box":
            sides = raw.reshape(images, 4, reg_max, *raw.shape[2:])
            vector = (_score(sides, 2, random) * (quality[spec.stride][:, None, None] / 4 / mass).sqrt()).reshape(
                raw.shape
            )
        elif spec.meaning == "mask":
            share = quality[spec.stride][:, None] / mass / raw.shape[1] / raw.square().mean().clamp(min=1e-12)
            vector = _signs(raw.shape, random) * (2 * share).sqrt()
        else:
            vector = _signs(raw.shape, random) * (2 / raw.numel() / raw.square().mean().clamp(min=1e-12)).sqrt()
        vectors.append(vector)
    return vectors


def _signs(shape: torch.Size, random: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=random) * 2.0 - 1.0


def _score(logits: Tensor, dim: int, random: torch.Generator) -> Tensor:
    """Gradient of the log probability of a label drawn from a softmax, with a random sign."""
    p = logits.softmax(dim)
    rows = p.movedim(dim, -1)
    drawn = torch.multinomial(rows.reshape(-1, rows.shape[-1]), 1, generator=random).reshape(rows.shape[:-1])
    labels = F.one_hot(drawn, rows.shape[-1]).to(p.dtype).movedim(-1, dim)
    signs = _signs(drawn.shape, random).unsqueeze(dim)
    return (labels - p) * signs


def relative_error(met: Tensor, expected: Tensor) -> Tensor:
    """Squared error over squared signal: 0 for equal tensors, the inverse of the signal-to-noise ratio."""
    return (met - expected).square().mean() / expected.square().mean().clamp(min=1e-12)


def _bernoulli_divergence(met: Tensor, expected: Tensor) -> Tensor:
    # p log(p/q) + (1-p) log((1-p)/(1-q)) in logits: no logarithm of a rounded probability.
    return torch.sigmoid(expected) * (expected - met) + F.softplus(met) - F.softplus(expected)


def _softmax_divergence(met: Tensor, expected: Tensor, dim: int) -> Tensor:
    log_p, log_q = F.log_softmax(expected, dim), F.log_softmax(met, dim)
    return (log_p.exp() * (log_p - log_q)).sum(dim)
