"""The releases that were announced and the one that is live, for the console and for reasons.

Fed from the topic `releases`; loads nothing.
"""

from protos.headrace.v1.release_pb2 import Release, ReleaseState


class ReleaseView:
    """The newest record of each release, in the order of those records."""

    def __init__(self) -> None:
        self._releases: dict[str, Release] = {}

    def put(self, release: Release) -> None:
        """Takes over a record of the topic."""
        self._releases.pop(release.release_id, None)
        self._releases[release.release_id] = release

    @property
    def live(self) -> Release | None:
        """The release of the newest record in state LIVE, or None before the first."""
        for release in reversed(self._releases.values()):
            if release.state == ReleaseState.RELEASE_STATE_LIVE:
                return release
        return None

    def newest(self, limit: int) -> list[Release]:
        """At most `limit` releases, the last created first."""
        by_age = sorted(self._releases.values(), key=lambda release: -release.created_time_ms)
        return by_age[:limit]
