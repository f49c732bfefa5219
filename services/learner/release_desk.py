"""The learner's hand on the releases: cut, gate, promote, roll back.

Everything goes through the `releases` topic, which is the only truth about what is live; nothing is
remembered here, so an operator's promotion and the learner's own never disagree.
"""

import time
import uuid
from collections.abc import Mapping

import structlog

from models.artifacts.release import ReleaseBundle
from models.online.learner import OnlineLearner
from protos.headrace.v1.release_pb2 import (
    RELEASE_STATE_CANDIDATE,
    RELEASE_STATE_LIVE,
    RELEASE_STATE_RETIRED,
    Release,
)
from services import metrics
from services.errors import NotFound
from services.releases.fold import Releases
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import Settings

log = structlog.get_logger()


def new_release_id(time_s: float) -> str:
    """An id that sorts by time and that nobody else makes."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time_s))
    return f"{stamp}-{uuid.uuid4().hex[:6]}"


class ReleaseDesk:
    """Cuts releases of a learner and decides which is live."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = ReleasePublisher(settings)
        self._store = release_store(settings)

    def live(self) -> Release | None:
        """What every service serves, or is about to; asks the topic."""
        return self._publisher.list().live

    def load(self, release_id: str) -> ReleaseBundle:
        """A release's content, verified; raises IncompatibleCheckpoint."""
        return self._store.load(release_id)

    def announce_stored(self, release_id: str, reason: str) -> Release:
        """Makes a release live that is in the store, whether the topic knows it or not.

        Raises IncompatibleCheckpoint, OSError, BrokerUnavailable.
        """
        return self._publisher.announce_stored(release_id, RELEASE_STATE_LIVE, reason)

    def cut(
        self, learner: OnlineLearner, offsets: Mapping[str, int], live: Release | None
    ) -> tuple[Release, ReleaseBundle]:
        """Publishes the learner's state as a candidate, then makes it live, or retires it with the reason."""
        now_s = time.time()
        bundle = learner.release_bundle(
            new_release_id(now_s),
            parent_release_id=live.release_id if live is not None else "",
            created_time_ms=int(now_s * 1000),
            offsets=dict(offsets),
        )
        candidate = self._publisher.publish(bundle, RELEASE_STATE_CANDIDATE, "waits for the gate")
        verdict = learner.gate()
        metrics.RELEASE_GATE.labels("promoted" if verdict.passed else "refused").inc()
        log.info(
            "release_gated", release_id=candidate.release_id, passed=verdict.passed, verdict=verdict.reason
        )
        known = self._publisher.list()
        if known.live_id != (live.release_id if live is not None else ""):
            return self._retire(candidate, f"{known.live_id} went live while it was cut", known), bundle
        if not verdict.passed:
            return self._retire(candidate, verdict.reason, known), bundle
        return self._publisher.announce(
            candidate.release_id, RELEASE_STATE_LIVE, verdict.reason, known
        ), bundle

    def _retire(self, release: Release, reason: str, known: Releases) -> Release:
        return self._publisher.announce(release.release_id, RELEASE_STATE_RETIRED, reason, known)

    def find(self, release_id: str) -> ReleaseBundle:
        """An announced release, verified; raises NotFound, or IncompatibleCheckpoint if it is broken."""
        if release_id not in self._publisher.list():
            raise NotFound(f"there is no release {release_id}; `headrace release list` names them")
        return self.load(release_id)

    def promote(self, release_id: str) -> Release:
        """Makes an announced release live by hand."""
        return self._publisher.announce(release_id, RELEASE_STATE_LIVE, "promoted by an operator")

    def rollback(self, reason: str) -> tuple[Release, ReleaseBundle]:
        """Makes the live release's parent live; raises NotFound if there is none, IncompatibleCheckpoint."""
        known = self._publisher.list()
        live = known.live
        if live is None:
            raise NotFound("no release is live")
        parent_id, live_id = live.parent_release_id, live.release_id
        if parent_id not in known:
            raise NotFound(
                f"release {live_id} has no parent to go back to; `headrace release list` shows the "
                "others, and `headrace release promote ID` makes one of them live"
            )
        bundle = self.load(parent_id)
        parent = self._publisher.announce(
            parent_id, RELEASE_STATE_LIVE, f"back from {live_id}: {reason}", known
        )
        self._retire(live, f"rolled back: {reason}", known)
        return parent, bundle
