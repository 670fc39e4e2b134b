"""From a decoded image to the classes it may be of, with a classifier's bundle."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, Manifest
from deploy.runtime.detector import default_threads
from deploy.runtime.engine import Engine, load_engine
from deploy.runtime.fit import fit_image
from deploy.runtime.image import read_image
from deploy.runtime.options import Options
from deploy.runtime.tasks import check_task
from deploy.runtime.tensors import Outputs, RawTensor

TOP_K = 5


@dataclass(frozen=True)
class Classification:
    """The likeliest classes of one image, best first.

    Attributes:
        class_ids: (k,) int64.
        scores: (k,) float32, softmax over all classes, 0..1.
        logits: (classes,) float32, as the network gave them.
    """

    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.class_ids)


class Classifier:
    """A classifier's bundle, opened and ready: `Classifier("runs/deploy/…")(image)`.

    Called from several threads at once it is safe, and they wait for each other. Its stages are public, so that each
    can be timed, or run in a thread of its own:

        pixels = classifier.preprocess(image)
        outputs = classifier.run(pixels)                      # valid until the next run
        classification = classifier.postprocess(outputs)      # in memory of its own
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        top_k: int = TOP_K,
        *,
        threads: int | None = None,
        options: Options | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: a bundle folder or an opened bundle.
            top_k: the most classes to name.
            threads: for one inference; default all processors this process may use.
            options: engine options by name, before those of the manifest; `deploy.runtime.options.OPTIONS` lists them.

        Raises:
            ValueError: `top_k` below 1.
            BundleError: no such bundle, one that was changed, or one that is no classifier's.
            EngineNotInstalledError: the bundle's runtime is missing.
            EngineError: the runtime refuses the model, or an option is unknown or out of range.
        """
        _check_top_k(top_k)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        check_task(opened.manifest, "classify", str(opened.path))
        engine = load_engine(opened, default_threads() if threads is None else threads, options)
        self._set(engine, opened.manifest, top_k)

    @classmethod
    def with_engine(cls, engine: Engine, manifest: Manifest, top_k: int = TOP_K) -> Classifier:
        """A classifier around an engine that is already open; `manifest` describes its input and output."""
        _check_top_k(top_k)
        check_task(manifest, "classify", "the manifest")
        classifier = cls.__new__(cls)
        classifier._set(engine, manifest, top_k)
        return classifier

    def _set(self, engine: Engine, manifest: Manifest, top_k: int) -> None:
        self.engine = engine
        self.manifest = manifest
        self.top_k = top_k
        self._lock = threading.Lock()

    def __call__(self, image: NDArray[np.uint8] | str | Path) -> Classification:
        """Classify one image.

        Args:
            image: a file, or pixels uint8: (height, width, 3) RGB, (height, width, 4) RGBA or (height, width) grey.

        Raises:
            DatasetError: the file cannot be read.
            ValueError: the array is not an image.
        """
        pixels = self.preprocess(read_image(image) if isinstance(image, (str, Path)) else image)
        with self._lock:
            return self.postprocess(self.run(pixels))

    def preprocess(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop or stretch an image to (1, height, width, 3) uint8 of the network's input size."""
        return fit_image(image, self.manifest.input)

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The network's logits, in the engine's own memory where it offers that: valid until the next run."""
        run = getattr(self.engine, "run", self.engine.infer)
        return cast(Outputs, run(pixels))

    def postprocess(self, outputs: Outputs) -> Classification:
        """What `run` or `engine.infer` gave, to the best classes; one whose logit is not finite is never named."""
        tensor = outputs[0]
        logits = np.array(tensor.cells() if isinstance(tensor, RawTensor) else tensor, np.float32).reshape(-1)
        finite = np.isfinite(logits)
        ranked = np.argsort(np.where(finite, -logits, np.inf), kind="stable")[: min(self.top_k, int(finite.sum()))]
        known = logits[finite]
        with np.errstate(over="ignore", under="ignore"):  # logits that far apart weigh nothing
            weights = np.exp(known - known.max()) if len(known) else known
            best = np.exp(logits[ranked] - known.max()) / weights.sum() if len(known) else known
        return Classification(ranked.astype(np.int64), best.astype(np.float32), logits)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")
