"""The stages of any model, cut where a stream hands over from one thread to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Output = TypeVar("Output", covariant=True)
Result = TypeVar("Result")


class InferenceEngine(Protocol):
    """The part of `deploy.runtime.Engine` that a stream needs."""

    def infer(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Run the network on one image."""


class Model(Protocol[Output]):
    """What a stream runs: `Detector`, `Segmenter`, `Classifier`, or anything with these stages.

    A model may also have, as `Detector` does, `new_buffer` (memory that `preprocess` takes as a second argument, to use
    again and again), `run` (in place of `engine.infer`), and `select` with `finish` (which together are `postprocess`;
    `finish` then runs while the engine is at the next frame).
    """

    @property
    def engine(self) -> InferenceEngine:
        """Its `infer` takes the network's input."""

    def preprocess(self, *image: Any) -> Any:
        """An image (height, width, 3) uint8 to the network's input, alone or in a tuple with more.

        Raises:
            ValueError: the array is not an image: that frame fails, the stream goes on.
        """

    def postprocess(self, *outputs: Any) -> Output:
        """The network's outputs, and what else `preprocess` gave, to a result in memory of its own."""


class Prepared(NamedTuple):
    """A frame on its way into the network."""

    pixels: NDArray[np.uint8]
    context: tuple[Any, ...]  # what postprocess wants besides the outputs


class Selected(NamedTuple):
    """What is left of the network's outputs, in memory of its own."""

    outputs: Any
    context: tuple[Any, ...]


class Stages(Generic[Result]):
    """Three calls: `prepare` and `finish` may run while `infer` is at another frame."""

    def __init__(self, model: Model[Result], buffers: int) -> None:
        """Look up the model's stages.

        Args:
            model: the model.
            buffers: frames that are prepared but not inferred yet, the one being prepared included.
        """
        new_buffer = getattr(model, "new_buffer", None)
        self._buffers = [new_buffer() for _ in range(buffers)] if new_buffer else []
        self._next = 0
        self._preprocess = model.preprocess
        self._run: Callable[[NDArray[np.uint8]], Any] = getattr(model, "run", None) or model.engine.infer
        self._select: Callable[[Any], Any] | None = getattr(model, "select", None)
        self._finish: Callable[..., Result] | None = getattr(model, "finish", None)
        self._postprocess = model.postprocess

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """Preprocess an image; the pixels stay as they are until `buffers` more were prepared.

        Raises:
            ValueError: the array is not an image.
        """
        buffer = self._buffers[self._next : self._next + 1]
        prepared = self._preprocess(image, *buffer)
        # Frames are inferred in order, so the buffers come free in order; one that was refused leaves its buffer free.
        self._next = (self._next + 1) % max(1, len(self._buffers))
        pixels, *context = prepared if isinstance(prepared, tuple) else (prepared,)
        return Prepared(pixels, tuple(context))

    def infer(self, prepared: Prepared) -> Any:
        """The network's outputs, valid until the next call."""
        return self._run(prepared.pixels)

    def select(self, outputs: Any, prepared: Prepared) -> Selected:
        """Take from the outputs what `finish` needs; all of postprocessing, where a model does not tell them apart."""
        if self._select is None or self._finish is None:
            return Selected(self._postprocess(outputs, *prepared.context), ())
        return Selected(self._select(outputs), prepared.context)

    def finish(self, selected: Selected) -> Result:
        """The result."""
        if self._select is None or self._finish is None:
            result: Result = selected.outputs
            return result
        return self._finish(selected.outputs, *selected.context)
