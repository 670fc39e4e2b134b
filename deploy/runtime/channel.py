"""A bounded queue between two threads that can be stopped, and that loses nothing uncounted."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """One thread puts, another takes, in order.

    Attributes:
        dropped: items pushed out by newer ones.
        abandoned: items that waited, or came, when the channel was stopped.
    """

    def __init__(self, capacity: int, *, keep_latest: bool = False) -> None:
        """Make an empty channel.

        Args:
            capacity: the most items that wait, at least 1.
            keep_latest: whether a full channel drops its oldest item for a new one; otherwise `put` waits.
        """
        self.dropped = 0
        self.abandoned = 0
        self._capacity = capacity
        self._keep_latest = keep_latest
        self._items: deque[Item] = deque()
        self._finished = False
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Add an item; False, and the item is abandoned, if nobody will take it any more."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._stopped:
                if self._keep_latest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._stopped:
                self.abandoned += 1
                return False
            self._items.append(item)
            self._changed.notify()
            return True

    def get(self) -> Item | None:
        """The oldest item, waited for; None once the channel was finished and is empty, or was stopped."""
        with self._changed:
            while not self._items and not self._finished and not self._stopped:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify()
            return item

    def finish(self) -> None:
        """Say that nothing more will be put; what waits can still be taken."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Abandon what waits and let nobody wait here any longer."""
        with self._changed:
            self._stopped = True
            self.abandoned += len(self._items)
            self._items.clear()
            self._changed.notify_all()
