"""What `bench_serving.py` measures on: a data set, a release learned from it, and the real stack.

Owns the making of that world (kept under `.headrace/`, since it takes minutes and the same code makes the
same one) and its start and stop. Knows nothing of what is measured. The release is learned in one hurried
pass: how good its answers are changes no time.
"""

import hashlib
import json
import random
import resource
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import REPOSITORY, console, data_folder, progress

from protos.headrace.v1.events_pb2 import ACTION_RATING, Action, Event
from protos.headrace.v1.items_pb2 import Item
from services.learner.checkpoints import CheckpointStore
from services.learner.cold_start.deadline import Deadline
from services.learner.cold_start.train import train_first_release
from services.settings import EndpointSettings, Settings, load_settings
from services.stack.children import SERVICES
from services.stack.embedded_broker import EmbeddedBroker
from services.stack.supervisor import Stack
from streaming.clients.producer import Producer
from streaming.clients.topic_admin import create_topics
from streaming.datasets.folder import Dataset, load_dataset
from streaming.histories.store import HistoryStore
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS, ITEMS

CACHE = REPOSITORY / ".headrace" / "bench-serving"
_NOW_MS = 1_760_000_000_000
_TRAIN_SECONDS, _TRAIN_EVENTS = 15.0, 20_000
_QUICK_TRAIN_SECONDS, _QUICK_TRAIN_EVENTS = 2.0, 600
# a catalogue that was asked for may be so large that its codebook takes minutes
_SIZED_TRAIN_SECONDS = 600.0
# what decides whether a kept release can be read by this code
_FORMAT_SOURCES = (
    "models/*.py",
    "services/learner/cold_start/train.py",
    "services/learner/checkpoints.py",
    "protos/**/*.proto",
)


@dataclass(frozen=True, kw_only=True)
class World:
    """A folder with everything a stack needs, the data it was made of, and what more memory its training took
    at the peak (10^6 bytes).
    """

    root: Path
    dataset: Dataset
    generated: bool
    training_mb: float

    @property
    def user_ids(self) -> list[str]:
        """Every user with a history, in a fixed order."""
        return sorted(set(self.dataset.user_id_N.tolist()))

    @property
    def item_ids(self) -> list[str]:
        """Every item of the catalogue."""
        return [item.item_id for item in self.dataset.items]


def make_world(*, quick: bool, num_items: int = 0) -> World:
    """Amazon Beauty (or, quick or without the data, a generated catalogue) with a release live.

    `num_items` asks for a generated catalogue of so many. The folder is kept from run to run and must not be
    written to: see `copied`.
    """
    dataset, generated = _dataset(quick=quick, num_items=num_items)
    root = CACHE / f"{dataset.name}-{_fingerprint(dataset)}"
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        train_s = _SIZED_TRAIN_SECONDS if num_items else _QUICK_TRAIN_SECONDS if quick else _TRAIN_SECONDS
        _fill(root, dataset, num_events=_QUICK_TRAIN_EVENTS if quick else _TRAIN_EVENTS, train_s=train_s)
        (root / "made").touch()
    peak_mb = float(json.loads((root / "world.json").read_text(encoding="utf-8"))["training_mb"])
    return World(root=root, dataset=dataset, generated=generated, training_mb=peak_mb)


@contextmanager
def copied(world: World) -> Iterator[Path]:
    """A copy of the world's folder that a run may write to, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        root = Path(folder) / "headrace"
        shutil.copytree(world.root, root)
        yield root


@asynccontextmanager
async def running(root: Path, **changes: Any) -> AsyncIterator[Settings]:
    """Broker and all services as processes on free ports, until the block ends, however it ends.

    `changes` replace parts of the settings, by the names of `Settings`.
    """
    settings = settings_for(root).model_copy(update=changes)
    async with Stack(settings):
        yield settings


def settings_for(root: Path) -> Settings:
    """Default settings with state under `root` and ports that nobody uses now."""
    settings = load_settings()
    base = _free_ports(len(SERVICES))
    ports = {name: base + place for place, name in enumerate(SERVICES)}
    return settings.model_copy(
        update={
            "store": replace(settings.store, root=root),
            "broker": replace(settings.broker, bootstrap_servers=f"127.0.0.1:{base + 30}"),
            "endpoints": EndpointSettings(**ports, console=base + 31, metrics_offset=10),
        }
    )


def _free_ports(num_services: int) -> int:
    """The first of 32 neighbouring free ports, below those that the system gives to clients."""
    while True:
        base = random.randrange(20_000, 32_000, 32)
        wanted = [*range(num_services), *range(10, 10 + num_services), 30, 31]
        with_listener = 0
        for offset in wanted:
            with socket.socket() as probe:
                with_listener += probe.connect_ex(("127.0.0.1", base + offset)) == 0
        if not with_listener:
            return base


def _dataset(*, quick: bool, num_items: int) -> tuple[Dataset, bool]:
    if num_items:
        return _generated(num_items, 20_000, 180_000), True
    if not quick:
        try:
            return load_dataset(data_folder("amazon_beauty")).ending_at(_NOW_MS), False
        except FileNotFoundError as error:
            console.print(f"[yellow]{error}[/]\nmeasuring on a generated catalogue of 12,000 items instead")
    return _generated(*((500, 300, 2_000) if quick else (12_000, 20_000, 180_000))), True


def _generated(num_items: int, num_users: int, num_events: int) -> Dataset:
    """Random users, popular and rare items, words for titles; the same in every run."""
    rng = np.random.default_rng(0)
    weight_N = 1.0 / np.arange(10, 10 + num_items)
    item_N = rng.choice(num_items, num_events, p=weight_N / weight_N.sum())
    user_N = rng.integers(num_users, size=num_events)
    vector_NE = rng.standard_normal((num_items, 384), dtype=np.float32)
    items = []
    for n in range(num_items):
        item = Item(
            item_id=f"item-{n}",
            title=f"item {n}",
            brand=f"brand {n % 97}",
            announced_time_ms=1_600_000_000_000,
        )
        item.embeddings.add(modality="text", values=vector_NE[n].tolist())
        items.append(item)
    step_ms = 60_000
    return Dataset(
        name="generated",
        items=items,
        user_id_N=np.array([f"user-{n}" for n in user_N], dtype=object),
        item_id_N=np.array([f"item-{n}" for n in item_N], dtype=object),
        time_ms_N=_NOW_MS - step_ms * np.arange(num_events, dtype=np.int64)[::-1],
        action_N=np.full(num_events, ACTION_RATING, dtype=np.int64),
        value_N=np.full(num_events, 5.0),
        row_N=np.arange(num_events, dtype=np.int64),
        position_N=None,
        event_id_N=np.array([f"generated-{n}" for n in range(num_events)], dtype=object),
    )


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256(f"{dataset.name} {len(dataset)} {len(dataset.items)}".encode())
    for pattern in _FORMAT_SOURCES:
        for path in sorted(REPOSITORY.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _fill(root: Path, dataset: Dataset, *, num_events: int, train_s: float) -> None:
    """Histories of everybody, items announced, a first release live, the learner's checkpoint."""
    settings = settings_for(root)
    settings = settings.model_copy(update={"train": replace(settings.train, max_epochs=1)})
    events = [dataset.event(n) for n in range(len(dataset))]
    with HistoryStore.open(settings.store.history_path, read_only=False) as store:
        store.apply([_record(n, event) for n, event in enumerate(events)], {})
    items = _announced(dataset)
    with EmbeddedBroker(settings.store.broker_path, settings.broker.bootstrap_servers) as broker:
        create_topics(broker.bootstrap, num_partitions=settings.broker.num_partitions, replication_factor=1)
        with Producer(broker.bootstrap) as producer:
            for item in items:
                # the vectors stay out: the release has them
                bare = Item(item_id=item.item_id, title=item.title, brand=item.brand)
                bare.categories.extend(item.categories)
                bare.announced_time_ms = item.announced_time_ms
                producer.send(ITEMS, bare.item_id, bare)
            producer.flush()
        with progress() as bars:
            tasks: dict[str, Any] = {}

            def show(stage: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
                task = tasks.setdefault(
                    stage, bars.add_task(stage) if stage not in tasks else tasks.get(stage)
                )
                bars.update(task, completed=done, total=total)

            before_mb = _resident_mb()
            first = train_first_release(
                settings,
                items,
                events[-num_events:],
                offsets={},
                progress=show,
                deadline=Deadline(train_s),
            )
    found = {
        "release_id": first.release.release_id,
        "num_learned": first.num_learned,
        "training_mb": max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before_mb),
    }
    (root / "world.json").write_text(json.dumps(found), encoding="utf-8")
    assert CheckpointStore(settings.store.checkpoint_path).staged(first.release.release_id) is not None


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def _announced(dataset: Dataset) -> list[Item]:
    """All items, each announced at its first event (the generated ones: at the beginning)."""
    first_ms: dict[str, int] = {}
    for item_id, time_ms in zip(dataset.item_id_N, dataset.time_ms_N.tolist(), strict=True):
        first_ms.setdefault(item_id, time_ms)
    for item in dataset.items:
        item.announced_time_ms = first_ms.get(item.item_id, int(dataset.time_ms_N[0]))
    return dataset.items


def _record(number: int, event: Event) -> Record:
    return Record(
        topic=INTERACTIONS,
        partition=0,
        offset=number,
        key=event.user_id,
        timestamp_ms=event.event_time_ms,
        message=event,
    )


def new_event(user_id: str, item_id: str, event_time_ms: int) -> Event:
    """A rating, which is what Beauty has."""
    return Event(
        user_id=user_id,
        item_id=item_id,
        action=Action.ACTION_RATING,
        value=5.0,
        event_time_ms=event_time_ms,
    )
