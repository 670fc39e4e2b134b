"""Methods of distillation for classifiers, one file each, and the list of the known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from distill.classification.classifier import Classifier
from distill.classification.methods.by_loss import taught_with
from distill.classification.methods.ensembles import (
    teach_by_features,
    teach_by_logits,
    teach_by_parts,
    teach_by_unlike,
)
from distill.classification.methods.eskd import teach_by_the_best_epoch
from distill.classification.methods.fitnets import hint_then_teach
from distill.classification.methods.mutual import learn_together
from distill.classification.methods.none import train_plainly
from distill.classification.methods.sftn import teach_friendly
from distill.classification.methods.sub_teachers import teach_by_sub_networks
from distill.classification.methods.subclass import teach_subclasses
from distill.classification.methods.takd import teach_through_assistants
from distill.classification.run import Run
from distill.errors import DistillError

__all__ = ["METHODS", "REMARKS", "find_method"]

#: Every known method under the name used in ``--method``: takes a run, returns the trained student.
METHODS: Final[Mapping[str, Callable[[Run], Classifier]]] = {
    "none": train_plainly,
    "kd": taught_with({"kd": 1.0}, balance=0.9),  # Hinton et al. 2015
    "dkd": taught_with({"dkd": 1.0}),  # Zhao et al. 2022; without their warm-up of the weight
    # After two reimplementations of Kobayashi 2022: 0.1 of the labels and 0.9 * 8 = 7.2 of the teacher.
    "extractive": taught_with({"extractive": 8.0}, balance=0.9),
    "fitnets": hint_then_teach,
    # Romero et al. 2015. Tian et al. 2020 weigh it with 100 too, but without the 1/2 of the paper's equation 3.
    "fitnets-joint": taught_with({"fitnets": 100.0}),
    "at": taught_with({"at": 1000.0}),  # Zagoruyko and Komodakis 2017
    "rkd": taught_with({"rkd": 25.0}),  # Park et al. 2019
    "crd": taught_with({"crd": 0.8}),  # Tian et al. 2020
    "subclass": teach_subclasses,
    "sftn": teach_friendly,
    "takd": teach_through_assistants,
    "eskd": teach_by_the_best_epoch,
    "ensemble-logits": teach_by_logits,
    "ensemble-features": teach_by_features,
    "unified": teach_by_parts,
    "sub-teachers": teach_by_sub_networks,
    "heterogeneous": teach_by_unlike,
    "mutual": learn_together,
}

#: What a reader of a method's results must know.
REMARKS: Final[Mapping[str, str]] = {
    "extractive": "Kobayashi 2022 second hand: after two public reimplementations, not the paper itself",
    "fitnets-joint": "half the weight of Tian et al. 2020, whose loss lacks the 1/2 of the paper's",
    "dkd": "without the authors' warm-up of its weight",
    "eskd": "the early-stopped teacher alone; the paper also stops distilling before the student's training ends",
    "ensemble-logits": "teachers of this seed and of the next, so that neighbouring seeds share one",
    "ensemble-features": "teachers of this seed and of the next, so that neighbouring seeds share one",
    "heterogeneous": "of the two teachers above, which may be one kind of network at two widths",
}


def find_method(name: str) -> Callable[[Run], Classifier]:
    """The method of that name.

    Raises:
        DistillError: for an unknown name.
    """
    if name not in METHODS:
        raise DistillError(f"unknown method {name!r}: the known ones are {', '.join(METHODS)}")
    return METHODS[name]
