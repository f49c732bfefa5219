"""Saves releases and says on the topic `releases` which is live."""

from typing import TYPE_CHECKING

from models.artifacts.release_meta import release_meta
from protos.headrace.v1.release_pb2 import Release, ReleaseFile, ReleaseState
from services.errors import NotFound
from services.releases.fold import Releases
from services.releases.store import release_store
from services.settings import Settings
from streaming.clients.follow import read_to_end
from streaming.clients.producer import Producer
from streaming.messages.records import offset_messages
from streaming.messages.topics import RELEASES

if TYPE_CHECKING:
    from models.artifacts.release import ReleaseBundle

LIVE = ReleaseState.RELEASE_STATE_LIVE
_RETIRED = ReleaseState.RELEASE_STATE_RETIRED


class ReleasePublisher:
    """Saves releases and says which is live. Blocking: for the learner's thread and the command line."""

    def __init__(self, settings: Settings) -> None:
        self._bootstrap = settings.broker.bootstrap_servers
        self._store = release_store(settings)

    def publish(self, bundle: "ReleaseBundle", state: ReleaseState.ValueType, reason: str = "") -> Release:
        """Writes a release to the store, then announces it in `state`; returns its record."""
        self._store.save(bundle)
        return self.announce_stored(bundle.meta.release_id, state, reason)

    def announce_stored(self, release_id: str, state: ReleaseState.ValueType, reason: str = "") -> Release:
        """Announces what is in the store, whether the topic knows it or not; returns its record.

        Raises IncompatibleCheckpoint, OSError where it cannot be read, BrokerUnavailable.
        """
        manifest = self._store.manifest(release_id)
        meta = release_meta(manifest)
        release = Release(
            release_id=meta.release_id,
            parent_release_id=meta.parent_release_id or "",
            codebook_version=meta.codebook_version,
            uri=self._store.uri(meta.release_id),
            files=[
                ReleaseFile(name=file.name, sha256=file.sha256, size_bytes=file.size_bytes)
                for file in manifest.files
            ],
            config_hash=meta.config_hash,
            created_time_ms=meta.created_time_ms,
            offsets=offset_messages(meta.offsets),
            metrics=dict(meta.metrics),
        )
        return self._announce(release, state, reason)

    def announce(
        self,
        release_id: str,
        state: ReleaseState.ValueType,
        reason: str = "",
        known: Releases | None = None,
    ) -> Release:
        """Puts a known release into another state; raises NotFound for an unknown one, BrokerUnavailable.

        `known` is what the topic says, for a caller that has just read it.
        """
        known = self.list() if known is None else known
        release = known.get(release_id)
        if release is None:
            raise NotFound(f"there is no release {release_id}; `headrace release list` names them")
        return self._announce(release, state, reason, known)

    def list(self) -> Releases:
        """What the topic says now; raises BrokerUnavailable."""
        releases = Releases()
        for record in read_to_end(self._bootstrap, RELEASES):
            releases.put(record.message)
        return releases

    def _announce(
        self, release: Release, state: ReleaseState.ValueType, reason: str, known: Releases | None = None
    ) -> Release:
        """Writes the new state; a release that goes live retires those before it, in this order."""
        if known is None and state == LIVE:
            known = self.list()
        replaced = [one for one in known or () if one.state == LIVE] if state == LIVE else []
        announced = Release()
        announced.CopyFrom(release)
        announced.state, announced.reason = state, reason
        with Producer(self._bootstrap) as producer:
            producer.send(RELEASES, announced.release_id, announced)
            for old in replaced:
                if old.release_id != announced.release_id:
                    old.state, old.reason = _RETIRED, f"{announced.release_id} went live"
                    producer.send(RELEASES, old.release_id, old)
            producer.flush()
        return announced
