"""What goes away and comes back: the broker, killed or stopped, under traffic."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.headrace.v1 import recommend_pb2
from protos.headrace.v1.events_pb2 import Action, Event
from services.stack.children import BROKER
from tests.cases.test_meaning import Record
from tests.cases.world import World, item_of, until

pytestmark = pytest.mark.integration

AWAY_S = 12.0


def broker_pid() -> int:
    """The process of the world's embedded broker: the one under this test run."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == f"{BROKER}\n" and is_descendant(int(path.parent.name)):
                return int(path.parent.name)
    raise LookupError("no broker process")


def is_descendant(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def acknowledged(world: World, user: str, event_ids: Iterator[str], until_s: float) -> list[str]:
    """Tracks events until `until_s`; the ids of those that were acknowledged."""
    taken = []
    while time.monotonic() < until_s:
        event_id = next(event_ids)
        with contextlib.suppress(grpc.RpcError):
            world.track(user, item_of(1, len(taken) % 25), Action.ACTION_CLICK, event_id=event_id)
            taken.append(event_id)
        time.sleep(0.05)
    return taken


@pytest.mark.case("the embedded broker killed (`kill -9`) right after 60 acknowledged events")
def test_acknowledged_events_survive_the_brokers_death(world: World, record_property: Record) -> None:
    killed = broker_pid()
    for n in range(60):
        world.track("survivor", item_of(2, n % 25), Action.ACTION_CLICK, event_id=f"s{n}")
    os.kill(killed, signal.SIGKILL)
    began_s = time.monotonic()
    assert len(world.answer("u1")) == 20

    def tracked() -> bool:
        with contextlib.suppress(grpc.RpcError):
            world.track("survivor", item_of(2, 3), Action.ACTION_LIKE, event_id="after")
            return True
        return False

    until(tracked, "an event is taken again")
    record_property("figure", f"events are taken again after {time.monotonic() - began_s:.1f} s")
    until(lambda: world.num_events("survivor") == 61, "all 61 events are in the history")
    until(lambda: world.status().lag_records == 0, "nothing is left to learn")
    assert broker_pid() != killed


@pytest.mark.case("broker away 12 s, three times, under traffic")
def test_a_broker_that_goes_away_and_comes_back_costs_nothing(world: World, record_property: Record) -> None:
    ids = iter(f"away-{n}" for n in range(100_000))
    taken: list[str] = []
    event = Event(user_id="traveller", item_id="i1", action=Action.ACTION_CLICK)
    request = recommend_pb2.TrackRequest(event=event)
    for _ in range(3):
        taken += acknowledged(world, "commuter", ids, time.monotonic() + 1.0)
        os.kill(broker_pid(), signal.SIGSTOP)
        back_s = time.monotonic() + AWAY_S
        try:
            while time.monotonic() < back_s:
                assert len(world.answer("u2")) == 20
                with contextlib.suppress(grpc.RpcError):
                    world.gateway.Track(request, timeout=1.0)
                time.sleep(0.5)
        finally:
            os.kill(broker_pid(), signal.SIGCONT)
    back_s = time.monotonic()
    taken += acknowledged(world, "commuter", ids, back_s + 1.0)
    until(lambda: world.status().lag_records == 0, "no lag", timeout_s=30.0)
    until(lambda: world.num_events("commuter") >= len(taken), "all events are in the history", timeout_s=30.0)
    record_property("figure", f"lag 0 after {time.monotonic() - back_s:.1f} s, {len(taken)} events")
