"""One run from recipe to trained student: what a method asks for is built, trained or found here."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from distill.classification.augment import Augmentation
from distill.classification.classifier import Classifier
from distill.classification.fit import Course, fit
from distill.classification.folders import ImageFolder, Split
from distill.classification.learner import Learner, Lesson, Taught, needs_maps
from distill.classification.lessons import Answers, FrozenTeacher, Precision, Teacher, TrainingImages
from distill.classification.networks import build_classifier
from distill.classification.pixels import Pixels
from distill.classification.processes import Processes
from distill.classification.recipe import ClassRecipe
from distill.classification.saved import is_trained, load_classifier, load_state
from distill.classification.stage import Stage
from distill.errors import DistillError
from distill.teacher import file_sha256

__all__ = ["Run"]


class Run:
    """What a method works with.

    Attributes:
        recipe: what was asked.
        settings: the recipe's.
        data: the data set.
        learned: the images that the student learns from: the training split, without what is held out.
        images: the same, augmented.
        used: the teachers that were asked for, in order, for the record.
    """

    def __init__(
        self,
        recipe: ClassRecipe,
        data: ImageFolder,
        folder: Path,
        processes: Processes,
        *,
        answers: Path | None = None,
        workers: int = 0,
    ) -> None:
        """Decode the images.

        Args:
            recipe: what to do.
            data: the opened data set.
            folder: the run's; stages are kept in ``training/``.
            processes: those of ``torchrun``, or this one alone.
            answers: folder for teachers' answers, shared between runs that ask the same.
            workers: loading processes, for data that does not fit into memory.
        """
        self.recipe, self.settings, self.data = recipe, recipe.settings, data
        self.processes = processes
        self.precision = Precision.choose(processes.device, self.settings.amp)
        self.used: list[FrozenTeacher] = []
        self._folder, self._answers, self._workers = folder / "training", answers, workers
        self._frame = recipe.frame
        self.learned, held_out = data.train.divided(self.settings.holdout)
        self.images = self.training_images(self.learned)
        self._held_out = None if held_out is None else self.pixels(held_out)
        self._score = self.pixels(data.val)

    # What a method asks for.

    def student(self, name: str = "", *, role: str = "student", subclasses: int = 1) -> Classifier:
        """A network of the student's architecture, or another, with weights that depend on seed and role alone."""
        pretrained = self.settings.pretrained if role == "student" else self.settings.teacher_pretrained
        with self._seeded(role):
            return build_classifier(
                name or self.recipe.student,
                classes=len(self.data.names),
                height=self._frame.height,
                width=self._frame.width,
                pretrained=pretrained,
                subclasses=subclasses,
            )

    def teacher_source(self) -> str:
        """The one teacher of a method that has one.

        Raises:
            DistillError: when there is none, or several.
        """
        sources = self.recipe.teachers
        if len(sources) != 1:
            raise DistillError(
                f"method {self.recipe.method} learns from one teacher, {len(sources)} are given: give one --teacher"
            )
        return sources[0]

    def architecture(self) -> str:
        """The one teacher, of a method that trains it in its own way.

        Raises:
            DistillError: when it is trained already.
        """
        source = self.teacher_source()
        if is_trained(source):
            raise DistillError(
                f"method {self.recipe.method} trains its teacher in its own way: give --teacher an architecture, "
                f"not the trained {source}"
            )
        return source

    def teacher(self) -> FrozenTeacher:
        """The one teacher, trained first where an architecture is given."""
        return self.ready(self.teacher_source(), "teacher")

    def teachers(self) -> list[FrozenTeacher]:
        """All teachers; one architecture alone stands for two of it with weights of their own.

        Raises:
            DistillError: when only one trained teacher is given.
        """
        sources = self.recipe.teachers
        if len(sources) == 1 and not is_trained(sources[0]):
            sources = sources * 2
        if len(sources) < 2:
            raise DistillError(
                f"method {self.recipe.method} learns from several teachers, {len(sources)} is given: "
                "give --teacher two or more, or one architecture to train twice"
            )
        return [self.ready(source, f"teacher-{number + 1}") for number, source in enumerate(sources)]

    def ready(self, source: str, role: str, images: TrainingImages | None = None) -> FrozenTeacher:
        """A trained teacher: loaded, or trained plainly as a stage of this run (on ``images``, or on all)."""
        if is_trained(source):
            classifier, sha256 = load_classifier(
                source, self.data.names, height=self._frame.height, width=self._frame.width
            )
            return self._used(FrozenTeacher(classifier, self.precision, sha256=sha256))
        classifier = self.student(source, role=role)
        return self.train_teacher(role, self.plain(classifier), images)

    def train_teacher(
        self, role: str, learner: Learner, images: TrainingImages | None = None, *, keep: Collection[int] = ()
    ) -> FrozenTeacher:
        """Train a network that will teach, for ``teacher_epochs``, in an order of its own; freeze it."""
        images = images or self.training_images(seed=self._seed(role), pixels=self.images.pixels)
        self.train(role, learner, images=images, epochs=self.teacher_epochs, keep=keep)
        return self.frozen(learner.student, self.stage(role).weights_sha256())

    def frozen(self, classifier: Classifier, sha256: str, *, raw: bool = False) -> FrozenTeacher:
        """A trained network as a teacher; ``raw`` answers with subclass logits."""
        return self._used(FrozenTeacher(classifier, self.precision, sha256=sha256, raw=raw))

    def plain(self, classifier: Classifier) -> Taught:
        """A network that learns from labels alone."""
        return Taught(classifier, (), balance=0.0, train_size=1, label_smoothing=self.settings.label_smoothing)

    def taught(
        self,
        student: Classifier,
        teacher: FrozenTeacher,
        *,
        weights: Mapping[str, float],
        balance: float,
        temperature: float = 4.0,
        images: TrainingImages | None = None,
    ) -> Taught:
        """A network that learns from labels and one teacher, with these values where the recipe has no others."""
        images = images or self.images
        chosen = weights if self.recipe.losses is None else self.recipe.losses
        lesson = Lesson(
            self.answering(teacher, images, maps=needs_maps(chosen)),
            teacher.classifier.layers,
            chosen,
            self.temperature(temperature),
        )
        return self.learning(student, [lesson], balance=balance, images=images)

    def learning(
        self,
        student: Classifier,
        lessons: Sequence[Lesson],
        *,
        balance: float,
        fixed: bool = False,
        images: TrainingImages | None = None,
    ) -> Taught:
        """A network that learns from labels and lessons; ``fixed`` keeps the balance whatever the recipe says."""
        with self._seeded("losses"):
            return Taught(
                student,
                lessons,
                balance=balance if fixed else self.balance(balance),
                train_size=len((images or self.images).pixels),
                label_smoothing=self.settings.label_smoothing,
            )

    def answering(self, teacher: FrozenTeacher, images: TrainingImages, *, maps: bool) -> Teacher:
        """The teacher, answering from memory where views of the images come again."""
        if not Answers.worth_it(teacher, images, maps=maps):
            return teacher
        return Answers(teacher, images, maps=maps, folder=self._answers)

    def train(
        self,
        role: str,
        learner: Learner,
        *,
        images: TrainingImages | None = None,
        epochs: int | None = None,
        keep: Collection[int] = (),
        choose: bool = True,
    ) -> Classifier:
        """Train a stage to its end, or load it where it is done; return its network.

        Without ``choose`` the last epoch counts even where images are held out: of a network that does not classify.
        """
        course = Course(
            train=images or self.images,
            held_out=self._held_out if choose else None,
            score=self._score,
            epochs=epochs or self.recipe.epochs,
            batch=self.recipe.batch,
            seed=self._seed(f"training of {role}"),
            settings=self.settings,
            keep=keep,
        )
        fit(learner, course, self.stage(role), self.processes)
        return learner.student

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a teacher that is trained here."""
        return self.settings.teacher_epochs or self.recipe.epochs

    def temperature(self, default: float) -> float:
        """The recipe's temperature, or the method's."""
        return default if self.recipe.temperature is None else self.recipe.temperature

    def balance(self, default: float) -> float:
        """The recipe's balance; else the method's, or an even one where the recipe brings its own losses."""
        if self.recipe.balance is not None:
            return self.recipe.balance
        return default if self.recipe.losses is None or not default else 0.5

    def stage(self, role: str) -> Stage:
        """The files of a stage."""
        return Stage(self._folder / role)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What a method's own layers draw while the block runs depends on the seed alone, not on what ran before."""
        with self._seeded("training of student"):
            yield

    def at(self, classifier: Classifier, weights: Path) -> FrozenTeacher:
        """A teacher with the weights of one of its epochs."""
        load_state(classifier, weights)
        return FrozenTeacher(classifier, self.precision, sha256=file_sha256(weights))

    def pixels(self, split: Split) -> Pixels:
        """Images of a split."""
        return Pixels(split, self._frame, workers=self._workers)

    def training_images(
        self, split: Split | None = None, *, seed: int | None = None, pixels: Pixels | None = None
    ) -> TrainingImages:
        """A training set with its augmentation, of a split or of pixels that are decoded already."""
        if pixels is None:
            pixels = self.pixels(split or self.data.train)
        seed = self.recipe.seed if seed is None else seed
        identity = " ".join(
            map(str, (self.data.train.sha256, self._frame, seed, self.settings.augment, len(pixels), self.precision))
        )
        labels = ",".join(map(str, pixels.labels.tolist()))
        return TrainingImages(
            pixels=pixels,
            augmentation=Augmentation(self.settings.augment, seed, len(pixels)),
            seed=seed,
            views=self.settings.views,
            precision=self.precision,
            identity=f"{identity} {zlib.crc32(labels.encode())}",
        )

    def _used(self, teacher: FrozenTeacher) -> FrozenTeacher:
        self.used.append(teacher)
        return teacher

    def _seed(self, role: str) -> int:
        return self.recipe.seed * 1_000_003 + zlib.crc32(role.encode()) % 1_000_003

    @contextmanager
    def _seeded(self, role: str) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(self._seed(role))
            yield
