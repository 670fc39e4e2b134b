"""The one root exception of this folder and its kinds."""

from __future__ import annotations


class DeployError(Exception):
    """Something the user can mend; the message is one line that says what to do next."""


class BundleError(DeployError):
    """A bundle is missing, incomplete, changed, or of a schema this version does not read."""


class DatasetError(DeployError):
    """A data set, an image or a label cannot be used as it is."""


class ImageTooLargeError(DatasetError):
    """An image has more pixels than the caller takes."""


class SourceError(DeployError):
    """A camera or a video cannot be opened or read on, or what reads it is not installed."""


class EngineNotInstalledError(DeployError):
    """The runtime that a bundle needs is not importable in this Python."""


class EngineError(DeployError):
    """The runtime refused the model or the input."""


class StudentError(DeployError):
    """A student checkpoint is missing, unreadable, or not one that can be deployed."""


class ExportError(DeployError):
    """A tool chain could not turn the student into a model of its format."""


class CalibrationError(DeployError):
    """The calibration images cannot be used."""


class VerificationError(DeployError):
    """A bundle loses more accuracy against its student than is allowed."""
