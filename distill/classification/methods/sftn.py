"""Student-friendly teachers: the teacher is trained with student branches on its features."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.classification.classifier import Classifier
from distill.classification.learner import Learner, shared_maps
from distill.classification.lessons import Batch
from distill.classification.run import Run
from distill.classification.taps import replaced
from distill.losses.sftn import student_friendly_loss

__all__ = ["teach_friendly"]


def teach_friendly(run: Run) -> Classifier:
    """Student-Friendly Teacher Network (SFTN, Park et al. 2021, "Learning Student-Friendly Teacher Networks").

    Section 3: while the teacher is trained, copies of what follows each of the student's maps are set on the
    teacher's maps through a small transform, and teacher and branches learn from each other. The branches are thrown
    away; the student then learns from that teacher by Hinton's loss.
    """
    network = run.student(run.architecture(), role="teacher")
    branch, settings = run.student(role="branches"), run.settings
    with run.drawing():
        learner = FriendlyTeacher(
            network,
            branch,
            branch_kl=settings.branch_kl,
            branch_ce=settings.branch_ce,
            label_smoothing=settings.label_smoothing,
        )
    teacher = run.train_teacher("teacher", learner)
    return run.train("student", run.taught(run.student(), teacher, weights={"kd": 1.0}, balance=0.9))


class FriendlyTeacher(Learner):
    """A teacher and its student branches.

    A branch is a whole student of which one map is replaced by the teacher's, transformed: only what follows that
    map takes part. The transform is a 1x1 convolution with batch norm and ReLU, on the teacher's map pooled or
    enlarged to the size of the student's.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        *,
        branch_kl: float,
        branch_ce: float,
        label_smoothing: float = 0.0,
    ) -> None:
        """Build a branch for each of the maps that both have, deepest first matched.

        Args:
            teacher: the network to train.
            student: an untrained network of the student's architecture; copied for every branch.
            branch_kl: weight of the KL between branches and teacher.
            branch_ce: weight of the branches' cross entropy.
            label_smoothing: of the teacher's own cross entropy.

        Raises:
            DistillError: when a network has no feature maps.
        """
        super().__init__()
        self.student = teacher
        maps = shared_maps(student, teacher.layers)
        self._names = student.layers.maps[-maps:]
        self._maps = maps
        self.branches = nn.ModuleList(copy.deepcopy(student) for _ in range(maps))
        self.transforms = nn.ModuleList(
            nn.Sequential(nn.Conv2d(theirs, ours, 1, bias=False), nn.BatchNorm2d(ours), nn.ReLU())
            for theirs, ours in zip(teacher.layers.channels[-maps:], student.layers.channels[-maps:], strict=True)
        )
        self._weights, self._label_smoothing = (branch_kl, branch_ce), label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the one loss as ``friendly``, less the teacher's own ``labels``."""
        found = self.student.activations(batch.images, batch.labels, batch.indices)
        branches = [
            self._branch(index, batch.images, found.feats[len(found.feats) - self._maps + index])
            for index in range(self._maps)
        ]
        branch_kl, branch_ce = self._weights
        whole = student_friendly_loss(found.logits, branches, batch.labels, branch_kl=branch_kl, branch_ce=branch_ce)
        logits = found.logits.float()
        labels = F.cross_entropy(logits, batch.labels, label_smoothing=self._label_smoothing)
        return {"labels": labels, "friendly": whole - F.cross_entropy(logits, batch.labels)}

    def _branch(self, index: int, images: Tensor, features: Tensor) -> Tensor:
        """Logits of the student whose map ``index`` is the teacher's."""
        branch = self.branches[index]
        network, name = branch.network, self._names[index]
        size = self._size(index, images)
        transformed = self.transforms[index](F.adaptive_avg_pool2d(features, size))
        with replaced(network, name, transformed):  # type: ignore[arg-type]
            return torch.as_tensor(branch(images))

    def _size(self, index: int, images: Tensor) -> tuple[int, int]:
        """Height and width of the student's own map, found by one look at one image."""
        sizes = self.__dict__.setdefault("_sizes", {})
        key = (index, tuple(images.shape[2:]))
        if key not in sizes:
            branch = self.branches[index]
            with torch.no_grad():
                training = branch.training
                branch.eval()
                none = torch.zeros(1, dtype=torch.long)
                found = branch.activations(images[:1], none, none)  # type: ignore[operator]
                branch.train(training)
            sizes[key] = tuple(found.feats[len(found.feats) - self._maps + index].shape[2:])
        height, width = sizes[key]
        return height, width
