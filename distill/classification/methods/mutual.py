"""Mutual learning: peers that train together, without a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from distill.classification.classifier import Classifier
from distill.classification.learner import Learner
from distill.classification.lessons import Batch
from distill.classification.methods.choices import refuse
from distill.classification.run import Run
from distill.classification.saved import is_trained
from distill.errors import DistillError
from distill.losses.mutual import peer_losses

__all__ = ["learn_together"]


def learn_together(run: Run) -> Classifier:
    """Deep Mutual Learning (DML, Zhang et al. 2018, "Deep Mutual Learning", equations 5 to 7).

    Each peer learns from the labels and from the mean of the others' KL to it, all in one step. Peers are the
    ``--teacher`` architectures, untrained; or, without any, ``peers`` networks of the student's own. The student is
    what is kept.
    """
    if trained := [source for source in run.recipe.teachers if is_trained(source)]:
        raise DistillError(f"mutual: peers start untrained: give --teacher architectures, not the trained {trained[0]}")
    refuse(run.recipe, "losses", "temperature", "balance")
    names = run.recipe.teachers or (run.recipe.student,) * (run.settings.peers - 1)
    peers = [run.student(name, role=f"peer-{number + 1}") for number, name in enumerate(names)]
    return run.train("student", Peers(run.student(), peers, run.settings.label_smoothing))


class Peers(Learner):
    """Networks that learn from labels and from each other."""

    def __init__(self, student: Classifier, peers: Sequence[Classifier], label_smoothing: float = 0.0) -> None:
        """Take the student and at least one peer."""
        super().__init__()
        self._label_smoothing = label_smoothing
        self.student = student
        self.peers = nn.ModuleList(peers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``labels`` and ``mutual``, each summed over all networks: gradients do not mix."""
        logits = [network(batch.images).float() for network in (self.student, *self.peers)]
        labels = [F.cross_entropy(own, batch.labels, label_smoothing=self._label_smoothing) for own in logits]
        return {"labels": sum(labels[1:], labels[0]), "mutual": sum(peer_losses(logits), labels[0].new_zeros(()))}
