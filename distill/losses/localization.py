"""Localization distillation: the student's box-edge distributions follow the teacher's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_score

__all__ = ["LocalizationDistillation"]


class LocalizationDistillation(nn.Module):
    """Localization Distillation (LD, Zheng et al. 2022, "Localization Distillation for Dense Object Detection").

    YOLOv8 predicts each box edge as a distribution over ``reg_max`` distances (DFL). LD matches those
    distributions, softened by a temperature T:

        L = T^2 / W * sum over anchors a of w_a * mean over 4 edges of KL( softmax(t / T) || softmax(s / T) )

    Zheng et al. apply it in the main region (the assigned anchors) and in a valuable region around it drawn by
    box overlap. Here one soft region does both: w_a is the teacher's highest class probability at the anchor.
    YOLOv8 is trained so that this score tracks the overlap of the predicted box with the object, hence it is
    high where the teacher's distribution is worth copying, and near 0 on background, where DFL is never trained
    and its output is noise. W is the sum of w_a, at least 1, as ``target_scores_sum`` is for ultralytics' DFL.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take the number of bins from the pair, and the temperature T > 0."""
        super().__init__()
        self.reg_max = pair.reg_max
        self.temperature = temperature

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``boxes`` of shape (batch, 4 * reg_max, anchors); return a float32 scalar, in nats per edge."""
        weight = object_score(teacher)  # (batch, anchors)
        log_q = self._log_probabilities(student.boxes)
        log_p = self._log_probabilities(teacher.boxes.detach())
        kl_per_anchor = (log_p.exp() * (log_p - log_q)).sum(dim=2).mean(dim=1)  # (batch, anchors)
        return (kl_per_anchor * weight).sum() * (self.temperature**2 / weight.sum().clamp(min=1.0))

    def _log_probabilities(self, boxes: Tensor) -> Tensor:
        """Softened log-probabilities, shape (batch, 4, reg_max, anchors)."""
        batch, _, anchors = boxes.shape
        logits = boxes.float().view(batch, 4, self.reg_max, anchors)
        return F.log_softmax(logits / self.temperature, dim=2)
