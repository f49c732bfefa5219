"""A small world that is alive: 200 users, 100 items in four kinds of 25, twelve clicks each; all services.

Each user clicks one kind, mostly. Tests bring users of their own, so that they do not disturb each other.
"""

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protos.headrace.v1 import learner_pb2, learner_pb2_grpc, recommend_pb2, recommend_pb2_grpc
from protos.headrace.v1.events_pb2 import Action, Event
from services.settings import (
    EndpointSettings,
    LearnerServiceSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    to_environment,
)
from services.stack.supervisor import is_serving
from streaming.clients.producer import Producer
from streaming.messages.topics import INTERACTIONS
from tests.conftest import find_free_port, find_port_pair

NUM_KINDS, NUM_ITEMS, NUM_USERS, NUM_CLICKS = 4, 100, 200, 12
_WORDS = ("red lipstick gloss", "garden hose reel", "jazz piano record", "trail running shoe")
_PATIENCE_S = 120.0
_SETTLE_S = 1.0

T = TypeVar("T")


def write_world(folder: Path) -> None:
    """The data folder: three weeks of clicks that end about now."""
    folder.mkdir(parents=True)
    rng = random.Random(7)
    start_s = int(time.time()) - 20 * 86_400
    rows = []
    for user in range(NUM_USERS):
        at_s = start_s + rng.randrange(86_400)
        for _ in range(NUM_CLICKS):
            kind = user % NUM_KINDS if rng.random() < 0.85 else rng.randrange(NUM_KINDS)
            rows.append((f"u{user}", item_of(kind, rng.randrange(NUM_ITEMS // NUM_KINDS)), at_s))
            at_s += rng.randrange(60, 100_000)
    rows.sort(key=lambda row: row[2])
    columns = {name: [row[n] for row in rows] for n, name in enumerate(("user_id", "item_id", "timestamp"))}
    pq.write_table(pa.table(columns | {"action": ["click"] * len(rows)}), folder / "interactions.parquet")
    with gzip.open(folder / "items.jsonl.gz", "wt") as lines:
        for n in range(NUM_ITEMS):
            item = {
                "item_id": f"i{n}",
                "title": f"{_WORDS[n % NUM_KINDS]} number {n}",
                "brand": f"brand {n % 7}",
                "categories": [f"group {n % NUM_KINDS}"],
            }
            lines.write(json.dumps(item) + "\n")


def item_of(kind: int, number: int) -> str:
    """The id of one of the 25 items of a kind."""
    return f"i{NUM_KINDS * number + kind}"


def kind_of(item_id: str) -> int:
    """The kind of an item of the world; -1 for others that a test announced."""
    number = item_id.removeprefix("i")
    return int(number) % NUM_KINDS if number.isdigit() else -1


class World:
    """The running service, as its callers see it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self._channel = grpc.insecure_channel(settings.endpoints.address("gateway"))
        self._learner_channel = grpc.insecure_channel(settings.endpoints.address("learner"))
        self.gateway = recommend_pb2_grpc.RecommenderServiceStub(self._channel)
        self.learner = learner_pb2_grpc.LearnerServiceStub(self._learner_channel)

    def close(self) -> None:
        """Disconnects."""
        self._channel.close()
        self._learner_channel.close()

    def headrace(
        self, *arguments: str, check: bool = True, folder: Path | None = None, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """`headrace arguments`, as a process of its own, with more variables in its environment.

        In `folder`, if given, as in a second shell there: not told where the state is.
        """
        inherited = environment(self.settings)
        if folder is not None:
            del inherited["HEADRACE_STORE"]
        done = subprocess.run(
            [*HEADRACE, *arguments],
            cwd=folder,
            env=inherited | variables,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
        )
        if check and done.returncode:
            pytest.fail(f"headrace {' '.join(arguments)}: {done.stderr[-2_000:]}", pytrace=False)
        return done

    def track(self, user_id: str, item_id: str, action: "Action.ValueType", **fields: float | str) -> None:
        """One event through the gateway."""
        event = Event(user_id=user_id, item_id=item_id, action=action, **fields)  # type: ignore[arg-type]
        self.gateway.Track(recommend_pb2.TrackRequest(event=event), timeout=30)

    def send(self, events: Iterable[Event]) -> None:
        """Events straight into the topic, as any producer may."""
        with Producer(self.settings.broker.bootstrap_servers) as producer:
            for event in events:
                producer.send(INTERACTIONS, event.user_id, event)
            producer.flush()

    def recommend(self, user_id: str, k: int = 20) -> recommend_pb2.RecommendResponse:
        """An answer."""
        request = recommend_pb2.RecommendRequest(user_id=user_id, k=k)
        response: recommend_pb2.RecommendResponse = self.gateway.Recommend(request, timeout=30)
        return response

    def answer(self, user_id: str, k: int = 20) -> list[str]:
        """The ids of an answer, best first."""
        return [item.item_id for item in self.recommend(user_id, k).recommendations]

    def num_of_kind(self, user_id: str, kind: int, k: int = 20) -> int:
        """How many of an answer's `k` items are of a kind; by chance, k / 4."""
        return sum(kind_of(item_id) == kind for item_id in self.answer(user_id, k))

    def num_events(self, user_id: str) -> int:
        """How many events of the user the histories hold."""
        try:
            return int(
                self.gateway.GetUser(recommend_pb2.GetUserRequest(user_id=user_id), timeout=30).num_events
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                return 0
            raise

    def status(self) -> learner_pb2.StatusResponse:
        """What the learner says."""
        response: learner_pb2.StatusResponse = self.learner.Status(learner_pb2.StatusRequest(), timeout=30)
        return response

    def wait_ready(self) -> None:
        """Returns when every service is ready and has read what was sent before."""
        for name in ("tokenizer", "generator", "ranker", "learner", "gateway"):
            address = self.settings.endpoints.address(name)
            until(lambda address=address: asyncio.run(is_serving(address, "")), f"{name} is ready")
        until(
            lambda: all(self.num_events(f"u{user}") == NUM_CLICKS for user in range(NUM_USERS)),
            "all histories",
        )
        until(lambda: self.num_taken() >= NUM_USERS * NUM_CLICKS, "all events learned")
        until(lambda: self.recommend("u0").fallback_reason == 0, "the model answers")

    def num_taken(self) -> int:
        """How many events the learner has read: learned, known already or refused."""
        status = self.status()
        return status.num_events_learned + status.num_events_duplicate + status.num_events_dead_lettered

    @contextmanager
    def taking(self, num_events: int) -> Iterator[None]:
        """Waits at the end of the block until the learner has read so many events more.

        Ranker and trends read the same topic at the same pace; a moment later they have them, too.
        """
        before = self.num_taken()
        yield
        until(lambda: self.num_taken() >= before + num_events, f"{num_events} events read")
        time.sleep(_SETTLE_S)


def until(condition: Callable[[], T], what: str, timeout_s: float = _PATIENCE_S) -> T:
    """The condition's first true value; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}", pytrace=False)
        time.sleep(0.1)
    return value


HEADRACE = (sys.executable, "-c", "from services.cli.main import main; main()")


def environment(settings: Settings) -> dict[str, str]:
    """That of a process with these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return inherited | to_environment(settings)


def world_settings(root: Path) -> Settings:
    """Free ports and the embedded broker."""
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "projector", "trends", "console")
    settings = Settings(
        store=StoreSettings(root=root),
        endpoints=EndpointSettings(**{name: find_port_pair() for name in names}, metrics_offset=1),
        server=ServerSettings(min_ping_interval_s=1.0),
        learner_service=LearnerServiceSettings(batch_wait_s=0.2),
    )
    return settings.model_copy(
        update={"broker": settings.broker.__class__(bootstrap_servers=f"127.0.0.1:{find_free_port()}")}
    )


@contextmanager
def living_world(root: Path) -> Iterator[World]:
    """The world, trained and served by real processes; all stopped at the end."""
    settings, folder = world_settings(root / "state"), root / "world"
    write_world(folder)
    log = root / "up.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*HEADRACE, "up", "--embedded-broker"], env=environment(settings), stdout=out, stderr=out
        ) as up,
    ):
        world = World(settings, folder)
        try:
            until(lambda: up.poll() is not None or "headrace is up" in log.read_text(), "headrace is up")
            if up.poll() is not None:
                pytest.fail(f"headrace up ended: {log.read_text()[-2_000:]}", pytrace=False)
            world.headrace("replay", "--data", str(folder), "--from", "0")
            world.headrace("train", "--from-topic")
            world.wait_ready()
            yield world
        finally:
            world.close()
            up.terminate()
