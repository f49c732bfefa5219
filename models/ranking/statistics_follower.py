"""Live statistics that follow a recorded stream: at every moment they hold exactly what was before it.

For offline work that asks as if at past moments (fitting the ranker, evaluation). Online, the learner
feeds the statistics itself.
"""

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.ranking.live_statistics import LiveStatistics


class StatisticsFollower:
    """Brings `statistics` forward through `stream` (in time order), event by event."""

    def __init__(self, statistics: LiveStatistics, catalogue: CatalogueIndex, stream: EventBatch) -> None:
        self.statistics = statistics
        self._catalogue = catalogue
        self._stream = stream
        self._next = 0

    def reach(self, time_ms: int) -> None:
        """Takes in all events strictly before `time_ms` that were not yet; never goes back.

        Strictly: of events at the very moment nobody knows which came first (times may be whole days).
        """
        stream = self._stream
        while self._next < len(stream) and stream.time_ms_N[self._next] < time_ms:
            n = self._next
            self.statistics.update(
                stream.user_ids[n],
                self._catalogue.item_ids[stream.item_N[n]],
                int(stream.action_N[n]),
                int(stream.time_ms_N[n]),
            )
            self._next += 1
