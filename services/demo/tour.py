"""`headrace demo`: the whole river flows once, on real data, and every promise is looked at.

Owns the order of the tour and the list of promises that were not kept. The stack, the training and the
figures are those that everybody uses; nothing here is made for the demo but the order.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from protos.headrace.v1 import (
    events_pb2,
    items_pb2,
    learner_pb2,
    learner_pb2_grpc,
    recommend_pb2_grpc,
    release_pb2,
)
from services.demo import moments, screen
from services.demo.live import LiveReplay
from services.demo.traffic import Traffic
from services.errors import BackendUnavailable
from services.releases.publisher import ReleasePublisher
from services.settings import Settings
from streaming.clients.producer import AsyncProducer
from streaming.datasets.folder import Dataset

MAX_CHANGE_S = 2.0
MAX_NEW_ITEM_S = 5.0
MIN_RELEASES = 2
_NUM_LIKED = 5
_MIN_HISTORY, _MAX_HISTORY = 20, 80


@dataclass
class Findings:
    """What the tour saw, and the promises that were not kept."""

    broken: list[str] = field(default_factory=list)

    def promise(self, kept: bool, text: str) -> None:
        """Notes `text` unless the promise was kept."""
        if not kept:
            self.broken.append(text)


@dataclass(kw_only=True)
class Tour:
    """The live part of the demo, on a running stack whose first release has seen events [0, begin)."""

    settings: Settings
    dataset: Dataset
    begin: int
    console: Console
    announced: set[str]
    findings: Findings = field(default_factory=Findings)

    async def run(self) -> Findings:
        """Shows everything once; what was not as promised is in the findings."""
        endpoints = self.settings.endpoints
        async with (
            grpc.aio.insecure_channel(endpoints.address("gateway")) as gateway,
            grpc.aio.insecure_channel(endpoints.address("learner")) as learner,
            AsyncProducer(self.settings.broker.bootstrap_servers) as producer,
        ):
            stub = recommend_pb2_grpc.RecommenderServiceStub(gateway)
            await self._show_changed_answer(stub)
            await self._show_new_item(stub)
            await self._show_replay(stub, learner_pb2_grpc.LearnerServiceStub(learner), producer)
        return self.findings

    def _some_user(self, place: int) -> str:
        """A user with a history of middling length; the same in every run."""
        counts = Counter(self.dataset.user_id_N[: self.begin])
        middling = [user for user, n in counts.items() if _MIN_HISTORY <= n <= _MAX_HISTORY]
        users = sorted(str(user) for user in middling or counts)
        return users[place % len(users)]

    def _history(self, user_id: str) -> list[str]:
        mine_N = self.dataset.user_id_N[: self.begin] == user_id
        return list(self.dataset.item_id_N[: self.begin][mine_N])

    async def _show_changed_answer(self, stub: moments.Stub) -> None:
        items = {item.item_id: item for item in self.dataset.items}
        popular = [item_id for item_id, _ in Counter(self.dataset.item_id_N[: self.begin]).most_common(300)]
        user_id = self._some_user(0)
        history = self._history(user_id)
        self.console.rule("an event changes the answer")
        self.console.print(f"user {user_id}, {len(history)} events; the last: {_titles(history[-5:], items)}")
        liked = moments.unlike(history, popular, items, _NUM_LIKED)
        changed = await moments.change_answer(stub, user_id, liked, self._like())
        self.console.print(screen.recommendations_table("before", changed.before))
        self.console.print(f"sent by Track: {_titles([item.item_id for item in liked], items)}")
        before = [item.item_id for item in changed.before.recommendations]
        self.console.print(screen.recommendations_table("after", changed.after, before=before))
        self.console.print(f"{changed.seconds:.2f} s from the last event to the changed answer")
        self.findings.promise(
            changed.seconds <= MAX_CHANGE_S, f"an event took {changed.seconds:.2f} s to change the answer"
        )

    async def _show_new_item(self, stub: moments.Stub) -> None:
        items = {item.item_id: item for item in self.dataset.items}
        user_id = self._some_user(7)
        template = items[self._history(user_id)[-1]]
        item = items_pb2.Item(
            item_id="headrace-demo-new-item",
            title=f"{template.title} (new edition)",
            brand=template.brand,
            categories=template.categories,
            embeddings=template.embeddings,
            announced_time_ms=self._present_ms,
        )
        self.console.rule("a new item is found")
        self.console.print(f"announced now: {item.title}; user {user_id} last chose {template.title}")
        self.announced.add(item.item_id)
        try:
            found = await moments.announce(stub, item, user_id)
        except BackendUnavailable as error:  # a model of few epochs may rank it low: the rest is worth seeing
            self.findings.promise(False, str(error))
            return
        self.console.print(
            screen.recommendations_table(f"user {user_id}", found.answer, highlight=item.item_id)
        )
        self.console.print(f"{found.seconds:.2f} s from the announcement to the recommendation")
        self.findings.promise(
            found.seconds <= MAX_NEW_ITEM_S, f"a new item took {found.seconds:.2f} s to be recommended"
        )

    async def _show_replay(
        self,
        stub: moments.Stub,
        learner: "learner_pb2_grpc.LearnerServiceAsyncStub",
        producer: AsyncProducer,
    ) -> None:
        self.console.rule("the stream goes on, the model learns")
        users = sorted(set(self.dataset.user_id_N[: self.begin]))
        known = {item.item_id for item in self.dataset.items} | self.announced
        traffic = Traffic(stub, user_ids=users, known_item_ids=known)
        replay = LiveReplay(
            dataset=self.dataset,
            begin=self.begin,
            end=len(self.dataset),
            producer=producer,
            learner=learner,
            traffic=traffic,
            announced=self.announced,
        )
        async with _running(traffic):
            with Live(console=self.console, refresh_per_second=2, transient=True) as live:
                await replay.run(live)
        status = await learner.Status(learner_pb2.StatusRequest(), timeout=30.0)
        self._report(status, traffic, await self._releases())

    def _report(
        self,
        status: learner_pb2.StatusResponse,
        traffic: Traffic,
        releases: list[release_pb2.Release],
    ) -> None:
        report = traffic.report
        self.console.print(screen.curve_panel(status.curve, console_width=self.console.width))
        self.console.print(screen.quality_table(status))
        self.console.print(screen.latency_table(report.percentiles(), report.num_answered))
        self.console.print(screen.releases_table(releases))
        self.console.print(
            f"{report.num_answered:,} answers while learning: {len(report.problems)} failed or invalid, "
            f"{report.num_fallbacks} fallbacks, made by {len(report.releases)} releases"
        )
        promise = self.findings.promise
        promise(not report.problems, f"{len(report.problems)} answers failed, first: {report.problems[:1]}")
        promise(report.num_answered > 0, "no answer was made during the replay")
        # the first release was live before the replay
        promise(
            len(report.releases) > MIN_RELEASES,
            f"{len(report.releases) - 1} releases went live during the replay, not {MIN_RELEASES}",
        )
        whole = next((row for row in status.quality if row.segment == "all"), None)
        promise(
            whole is not None and whole.recall_at_10 > whole.popularity_recall_at_10,
            "prequential Recall@10 is not above popularity",
        )

    async def _releases(self) -> list[release_pb2.Release]:
        return list(await asyncio.to_thread(ReleasePublisher(self.settings).list))

    @property
    def _present_ms(self) -> int:
        """The time at which the stream stands before the replay."""
        return int(self.dataset.time_ms_N[self.begin - 1])

    def _like(self) -> events_pb2.Event:
        """An approving event of the kind this data set has most of, now."""
        actions = Counter(self.dataset.action_N[: self.begin].tolist())
        action = events_pb2.Action.ValueType(actions.most_common(1)[0][0])
        value = float(self.dataset.value_N[: self.begin].max())
        return events_pb2.Event(action=action, value=value, event_time_ms=self._present_ms)


@asynccontextmanager
async def _running(traffic: Traffic) -> AsyncIterator[None]:
    task = asyncio.create_task(traffic.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _titles(item_ids: list[str], items: dict[str, items_pb2.Item]) -> str:
    titles = [items[item_id].title for item_id in item_ids]
    return "; ".join(title or item_id for title, item_id in zip(titles, item_ids, strict=True))


def promises_panel(findings: Findings, seconds: float) -> Panel:
    """The end of the tour: what held, or what did not."""
    if findings.broken:
        lines = [f"not kept: {text}" for text in findings.broken]
        return Panel("\n".join(lines), title=f"tour ended after {seconds:.0f} s", border_style="red")
    return Panel("every promise was kept", title=f"tour ended after {seconds:.0f} s", border_style="green")
