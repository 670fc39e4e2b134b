"""The one root exception of this folder."""

from __future__ import annotations


class DistillError(Exception):
    """A refusal or failure of a distillation, as one line a user can act on.

    The message says what failed, the value met, the value expected and what to do next.
    """
