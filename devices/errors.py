"""The one root exception of this folder and its kinds."""

from __future__ import annotations


class DeviceError(Exception):
    """A device cannot be used as asked; the message is one line that says what to do next."""


class InventoryError(DeviceError):
    """The inventory file is missing, malformed, or does not know a name."""


class ConnectionFailedError(DeviceError):
    """SSH itself failed: unreachable, refused, host key not accepted, or the link was lost.

    Attributes:
        may_return: whether the machine had been reached before, so that another attempt may reach it again.
    """

    def __init__(self, message: str, may_return: bool = False) -> None:
        super().__init__(message)
        self.may_return = may_return


class TransferError(DeviceError):
    """Files did not arrive whole."""
