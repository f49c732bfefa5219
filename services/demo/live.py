"""The rest of a data folder sent through the broker while the service learns, shown as it happens.

The sender keeps the learner a bounded number of events behind, so the picture is a stream and not a
backlog. Items are announced a chunk before their first event, as a shop would.
"""

import asyncio
import time
from dataclasses import dataclass, field

import grpc
import grpc.aio
from rich.console import Group
from rich.live import Live
from rich.text import Text

from protos.headrace.v1 import items_pb2, learner_pb2, learner_pb2_grpc
from services.demo.screen import curve_panel
from services.demo.traffic import Traffic
from services.errors import BackendUnavailable
from streaming.clients.producer import AsyncProducer
from streaming.datasets.folder import Dataset
from streaming.messages.topics import INTERACTIONS, ITEMS

_CHUNK_EVENTS = 500
_MAX_EVENTS_AHEAD = 2_500
_POLL_INTERVAL_S = 0.5
_STALL_PATIENCE_S = 120.0
# On a slow machine the rest is left out: the tour is to end.
MAX_SENDING_S = 90.0
_LINE_INTERVAL_S = 10.0


@dataclass
class LiveReplay:
    """Sends events [begin, end) of `dataset` and watches the learner take them in."""

    dataset: Dataset
    begin: int
    end: int
    producer: AsyncProducer
    learner: "learner_pb2_grpc.LearnerServiceAsyncStub"
    traffic: Traffic
    announced: set[str]
    num_sent: int = 0
    next_line_s: float = 0.0
    status: learner_pb2.StatusResponse = field(default_factory=learner_pb2.StatusResponse)

    async def run(self, live: Live) -> None:
        """Returns when every event sent has been learned: all there are, or those of 90 s.

        Raises BackendUnavailable when learning stalls.
        """
        first = await self._poll()
        started = time.monotonic()
        done_before = _num_taken(first)
        progress_at, taken = started, 0
        items = {item.item_id: item for item in self.dataset.items}
        while taken < self.end - self.begin:
            while self.num_sent < self.end - self.begin and self.num_sent - taken < _MAX_EVENTS_AHEAD:
                await self._send_chunk(items)
            await asyncio.sleep(_POLL_INTERVAL_S)
            status = await self._poll()
            if time.monotonic() - started > MAX_SENDING_S:
                self.end = self.begin + self.num_sent
            if _num_taken(status) - done_before > taken:
                taken, progress_at = _num_taken(status) - done_before, time.monotonic()
            self._show(live, taken, time.monotonic() - started)
            if time.monotonic() - progress_at > _STALL_PATIENCE_S:
                raise BackendUnavailable(f"the learner learned nothing for {_STALL_PATIENCE_S:.0f} s")

    async def _poll(self) -> learner_pb2.StatusResponse:
        """The learner's status; the last one while a learner that was killed starts again."""
        try:
            self.status = await self.learner.Status(learner_pb2.StatusRequest(), timeout=30.0)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return self.status

    async def _send_chunk(self, items: dict[str, items_pb2.Item]) -> None:
        first = self.begin + self.num_sent
        last = min(first + _CHUNK_EVENTS, self.end)
        ahead = min(last + _CHUNK_EVENTS, self.end)
        fresh = [
            items[item_id]
            for item_id in dict.fromkeys(self.dataset.item_id_N[first:ahead])
            if item_id not in self.announced
        ]
        if fresh:
            present_ms = int(self.dataset.time_ms_N[first])
            for item in fresh:
                item.announced_time_ms = item.announced_time_ms or present_ms
                self.announced.add(item.item_id)
            await self.producer.send_many(ITEMS, [(item.item_id, item) for item in fresh])
        events = [self.dataset.event(n) for n in range(first, last)]
        await self.producer.send_many(INTERACTIONS, [(event.user_id, event) for event in events])
        self.num_sent = last - self.begin

    def _show(self, live: Live, taken: int, seconds: float) -> None:
        """The curve on a terminal; elsewhere a plain line every ten seconds."""
        report = self.traffic.report
        rate = taken / seconds if seconds else 0.0
        lines = [
            f"events sent {self.num_sent:,} of {self.end - self.begin:,}, learned {taken:,}, {rate:,.0f}/s",
            f"answers {report.num_answered:,} ({len(report.problems):,} failed or invalid), "
            f"release {self.status.live_release_id}",
        ]
        if live.console.is_terminal:
            curve = curve_panel(self.status.curve, console_width=live.console.width)
            live.update(Group(curve, Text("\n".join(lines))))
        elif seconds >= self.next_line_s:
            self.next_line_s = seconds + _LINE_INTERVAL_S
            live.console.print("; ".join(lines), highlight=False, soft_wrap=True)


def _num_taken(status: learner_pb2.StatusResponse) -> int:
    return status.num_events_learned + status.num_events_duplicate + status.num_events_dead_lettered
