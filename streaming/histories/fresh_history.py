"""The histories as the store has them, followed by what this process has just written.

An event that came through this process counts in its user's very next answer, before the projector has read
it back from the broker. Events written elsewhere come with the projector. How the two are joined is the
store's business, and what histories are for is not known here.
"""

from collections import deque

from protos.headrace.v1.events_pb2 import HistoryEvent
from streaming.histories.store import HistoryStore, Written

# If the projector is further behind than this, the oldest events wait for it.
MAX_WAITING = 10_000


class FreshHistory:
    """`wrote` when the broker has an event; `get` and `count` as those of the store. For one event loop."""

    def __init__(self, store: HistoryStore, *, max_waiting: int = MAX_WAITING) -> None:
        self._store = store
        self._max_waiting = max_waiting
        self._num_written = 0
        self._written: deque[Written] = deque()  # in order; those applied meanwhile stay until pushed out
        self._waiting: dict[str, list[Written]] = {}

    def wrote(self, written: Written) -> None:
        """The broker has this event."""
        self._num_written += 1
        user_id = written.event.user_id
        self._waiting.setdefault(user_id, []).append(written)
        self._written.append(written)
        if len(self._written) > self._max_waiting:
            oldest = self._written.popleft()
            others = self._waiting.get(oldest.event.user_id, [])
            # among the first of its user's, unless it was applied meanwhile
            at = next((n for n, one in enumerate(others) if one is oldest), len(others))
            self._keep(oldest.event.user_id, others[:at] + others[at + 1 :])

    def get(self, user_id: str, limit: int, *, with_shown: bool = False) -> list[HistoryEvent]:
        """The newest `limit` events of a user, as the store's `get`."""
        written = self._waiting.get(user_id)
        if not written:
            return self._store.get(user_id, limit, with_shown=with_shown)
        events, waiting = self._store.get_with(user_id, limit, written, with_shown=with_shown)
        self._keep(user_id, waiting)
        return events

    @property
    def version(self) -> tuple[int, int]:
        """A number that changes whenever any history may have changed; costs next to nothing."""
        return self._store.version, self._num_written

    def count(self, user_id: str) -> int:
        """How many events the user ever had, as far as this process can know."""
        if user_id in self._waiting:
            self.get(user_id, 0)
        return self._store.count(user_id) + len(self._waiting.get(user_id, ()))

    def _keep(self, user_id: str, waiting: list[Written]) -> None:
        if waiting:
            self._waiting[user_id] = waiting
        else:
            self._waiting.pop(user_id, None)
