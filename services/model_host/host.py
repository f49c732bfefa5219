"""The live release of a process, kept up to date, for the services that answer from it.

Owns one copy of the weights and of the catalogue, however many services share the process. What a service
makes of a release and of the events is its own business (`Tenant`). Knows no broker.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from models.artifacts.release import ReleaseBundle
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.engine import Engine
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import ItemSid
from services.model_host.live_catalogue import Changes, LiveCatalogue


class HostedRelease:
    """A release in memory: the engine over its catalogue, which all services of the process share."""

    def __init__(self, bundle: ReleaseBundle) -> None:
        self.release_id = bundle.meta.release_id
        self.catalogue: CatalogueIndex = bundle.catalogue
        self.engine: Engine = CpuEngine(bundle.recommender, bundle.catalogue, bundle.ranker)


class Tenant(Protocol):
    """A service that answers from the live release.

    All but `load` is called under the model's lock. `counts_events`: whether it takes every event, from its
    first release's offsets on.
    """

    name: str
    counts_events: bool

    def load(self, hosted: HostedRelease, bundle: ReleaseBundle) -> Any:
        """What it makes of a release beside the live one, warmed up; raises to refuse it."""
        ...

    def swap(self, loaded: Any) -> None:
        """Makes what `load` gave the live one."""
        ...

    def items_changed(self, changes: Changes, *, is_live: bool) -> None:
        """The catalogue of its live release changed so; `is_live`: as it happened."""
        ...

    def put_events(self, events: Sequence[Event]) -> None:
        """Takes events in stream order, if it `counts_events`."""
        ...


class ModelHost:
    """`load` and `swap` a release, `put_items`, `put_events`: for all tenants at once."""

    def __init__(self, *tenants: Tenant) -> None:
        self.tenants = tenants
        self.live: HostedRelease | None = None
        self._catalogue = LiveCatalogue()

    def load(self, bundle: ReleaseBundle) -> tuple[HostedRelease, list[Any]]:
        """Prepares a release beside the live one: catalogue up to date, items encoded, tenants warmed up.

        Callable beside the model's work; raises to refuse the release.
        """
        self._catalogue.prepare(bundle.catalogue)
        hosted = HostedRelease(bundle)
        return hosted, [tenant.load(hosted, bundle) for tenant in self.tenants]

    def swap(self, loaded: tuple[HostedRelease, list[Any]]) -> None:
        """Makes a loaded release the live one for all tenants."""
        hosted, parts = loaded
        changes = self._catalogue.swap(hosted.catalogue)
        hosted.engine.put_items(changes.changed_rows)
        self.live = hosted
        for tenant, part in zip(self.tenants, parts, strict=True):
            tenant.swap(part)
            tenant.items_changed(changes, is_live=False)

    def put_items(self, sids: Sequence[ItemSid], *, is_live: bool = True) -> None:
        """Takes announced items; `is_live` says that they come as they happen, so their delay counts."""
        changes = self._catalogue.put_many(sids)
        if self.live is not None:
            self.live.engine.put_items(changes.changed_rows)
        for tenant in self.tenants:
            tenant.items_changed(changes, is_live=is_live)

    def put_events(self, events: Sequence[Event]) -> None:
        """Takes events in stream order."""
        for tenant in self.tenants:
            if tenant.counts_events:
                tenant.put_events(events)
