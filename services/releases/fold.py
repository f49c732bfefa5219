"""What the topic `releases` says: the newest record of each release, and the one rule for which is live."""

from collections.abc import Iterator

from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE, Release


class Releases:
    """Records taken one after the other, by release, in the order of each one's newest record."""

    def __init__(self) -> None:
        self._records: dict[str, Release] = {}

    def put(self, release: Release) -> None:
        """Takes over a record of the topic."""
        self._records.pop(release.release_id, None)
        self._records[release.release_id] = release

    @property
    def live(self) -> Release | None:
        """The release of the newest record in state LIVE, which everybody is to serve; None before the
        first."""
        for release in reversed(self._records.values()):
            if release.state == RELEASE_STATE_LIVE:
                return release
        return None

    @property
    def live_id(self) -> str:
        """The live release's id, empty for none."""
        live = self.live
        return "" if live is None else live.release_id

    def get(self, release_id: str) -> Release | None:
        """The newest record of a release."""
        return self._records.get(release_id)

    def last_created(self, limit: int) -> list[Release]:
        """At most `limit` releases, the last created first."""
        return sorted(self, key=lambda release: -release.created_time_ms)[:limit]

    def __contains__(self, release_id: object) -> bool:
        return release_id in self._records

    def __iter__(self) -> Iterator[Release]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)
