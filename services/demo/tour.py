"""`headrace demo`: the whole river flows once, on real data, and every promise is looked at.

Owns the order of the tour. The stack, the training and the
figures are those that everybody uses; nothing here is made for the demo but the order.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from rich.console import Console
from rich.live import Live

from models.measures.gate import GATE_UNDECIDED
from protos.headrace.v1 import (
    events_pb2,
    items_pb2,
    learner_pb2,
    learner_pb2_grpc,
    recommend_pb2,
    recommend_pb2_grpc,
    release_pb2,
)
from services.demo import moments, screen
from services.demo.findings import Findings, is_above
from services.demo.live import MAX_SENDING_S, LiveReplay
from services.demo.traffic import Traffic
from services.demo.training import Measured
from services.errors import BackendUnavailable
from services.releases.publisher import ReleasePublisher
from services.settings import Settings
from streaming.clients.producer import AsyncProducer
from streaming.datasets.folder import Dataset

MAX_CHANGE_S = 2.0
MIN_RELEASES = 2
_MODEL_PATIENCE_S = 60.0
_POLL_INTERVAL_S = 0.2
_NUM_LIKED = 5
_MIN_HISTORY, _MAX_HISTORY = 20, 80


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What the tour calls while it goes on."""

    gateway: moments.Stub
    learner: "learner_pb2_grpc.LearnerServiceAsyncStub"
    producer: AsyncProducer


@dataclass(kw_only=True)
class Tour:
    """The live part of the demo, on a running stack whose first release has seen events [0, begin)."""

    settings: Settings
    dataset: Dataset
    begin: int
    console: Console
    announced: set[str]
    findings: Findings = field(default_factory=Findings)
    _calls: Calls | None = None

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[None]:
        """Opens what the other methods call; what was not as promised is in the findings after them."""
        endpoints = self.settings.endpoints
        async with (
            grpc.aio.insecure_channel(endpoints.address("gateway")) as gateway,
            grpc.aio.insecure_channel(endpoints.address("learner")) as learner,
            AsyncProducer(self.settings.broker.bootstrap_servers) as producer,
        ):
            self._calls = Calls(
                gateway=recommend_pb2_grpc.RecommenderServiceStub(gateway),
                learner=learner_pb2_grpc.LearnerServiceStub(learner),
                producer=producer,
            )
            yield

    async def show_first_answer(self, modest: Measured, started_s: float) -> None:
        """Recommendations by the first model, the seconds since the start (monotonic) and how good it is."""
        user_id = self._some_user(0)
        self.console.rule("the first recommendations by a model")
        answer = await self._answer_by_a_model(user_id)
        seconds = time.monotonic() - started_s
        self.console.print(screen.recommendations_table(f"user {user_id}", answer))
        self.console.print(f"{seconds:.0f} s after the start, by a small model that was trained briefly:")
        self.console.print(
            screen.held_out_table(
                modest.num_events, {"first release": modest.recall}, modest.popularity_recall
            )
        )
        self._judge_popularity(modest, "first")

    async def show_moments(self) -> None:
        """An event changes an answer; a new item is found."""
        assert self._calls is not None
        await self._show_changed_answer(self._calls.gateway)
        await self._show_new_item(self._calls.gateway)

    async def show_whole_training(self, modest: Measured, whole: Measured) -> None:
        """The second release, once it answers and the learner goes on from it, beside the first."""
        assert self._calls is not None
        await self._until_served(whole.release_id)
        recalls = {"first release": modest.recall, "second release": whole.recall}
        self.console.print(screen.held_out_table(whole.num_events, recalls, whole.popularity_recall))
        self.console.print("the learner goes on from the second one, and learns the events since")
        better = is_above(whole.recall, modest.recall, whole.num_events)
        self.findings.judge(better, "the second release is better than the first on the same held-out events")
        self._judge_popularity(whole, "second")

    def _judge_popularity(self, measured: Measured, name: str) -> None:
        above = is_above(measured.recall, measured.popularity_recall, measured.num_events)
        self.findings.judge(above, f"the {name} release is above popularity on held-out events")

    async def _answer_by_a_model(self, user_id: str) -> recommend_pb2.RecommendResponse:
        """An answer without fallback; raises BackendUnavailable where there is none for a minute."""
        assert self._calls is not None
        deadline_s = time.monotonic() + _MODEL_PATIENCE_S
        while time.monotonic() < deadline_s:
            answer = await moments.recommend(self._calls.gateway, user_id)
            if answer.release_id and not answer.fallback_reason:
                return answer
            await asyncio.sleep(_POLL_INTERVAL_S)
        raise BackendUnavailable(f"no model answered within {_MODEL_PATIENCE_S:.0f} s of its release")

    async def _until_served(self, release_id: str) -> None:
        """Returns when gateway and learner have taken a release up; else raises BackendUnavailable."""
        assert self._calls is not None
        deadline_s = time.monotonic() + _MODEL_PATIENCE_S
        user_id = self._some_user(0)
        while time.monotonic() < deadline_s:
            answer = await moments.recommend(self._calls.gateway, user_id)
            status = await self._calls.learner.Status(learner_pb2.StatusRequest(), timeout=30.0)
            if answer.release_id == release_id == status.live_release_id:
                return
            await asyncio.sleep(_POLL_INTERVAL_S)
        raise BackendUnavailable(f"release {release_id} did not come into use")

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
            found = await moments.announce(stub, item, user_id, most=self.settings.gateway.max_k)
        except BackendUnavailable as error:  # the rest is worth seeing
            self.console.print(str(error))
            self.findings.promise(False, str(error))
            return
        if found.place > moments.FEW:
            text = f"place {found.place} of {len(found.answer.recommendations)}, behind other new items"
            self.console.print(text)
            self.findings.leave_open(f"whether a new item is recommended within seconds: it got {text}")
            return
        self.console.print(
            screen.recommendations_table(f"user {user_id}", found.answer, highlight=item.item_id)
        )
        self.console.print(f"{found.seconds:.2f} s from the announcement to the recommendation")
        self.findings.promise(
            found.seconds <= moments.MAX_NEW_ITEM_S,
            f"a new item took {found.seconds:.2f} s to be recommended",
        )

    async def show_replay(self) -> None:
        """The rest of the data, sent while it is learned and recommended from."""
        assert self._calls is not None
        stub, learner, producer = self._calls.gateway, self._calls.learner, self._calls.producer
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
        if replay.end < len(self.dataset):
            self.console.print(
                f"{len(self.dataset) - replay.end:,} events were left out: a slow machine replays what it "
                f"learns in {MAX_SENDING_S:.0f} s"
            )
        self._report(status, traffic, await self._releases(), num_replayed=replay.end - self.begin)

    def _report(
        self,
        status: learner_pb2.StatusResponse,
        traffic: Traffic,
        releases: list[release_pb2.Release],
        num_replayed: int,
    ) -> None:
        report = traffic.report
        self.console.print(screen.curve_panel(status.curve, console_width=self.console.width))
        self.console.print(screen.quality_table(status))
        self.console.print(screen.latency_table(report.percentiles(), report.num_answered))
        self.console.print(screen.releases_table(releases))
        self.console.print(
            f"{report.num_answered:,} answers while learning: {len(report.problems)} failed or invalid, "
            f"{report.num_fallbacks} fallbacks, made by {len(report.releases)} release(s)"
        )
        promise = self.findings.promise
        promise(not report.problems, f"{len(report.problems)} answers failed, first: {report.problems[:1]}")
        promise(report.num_answered > 0, "no answer was made during the replay")
        self._judge_releases(len(report.releases) - 1, releases, num_replayed)
        whole = next((row for row in status.quality if row.segment == "all"), None)
        above = None
        if whole is not None:
            above = is_above(whole.recall_at_10, whole.popularity_recall_at_10, whole.num_events)
        self.findings.judge(above, "prequential Recall@10 is above popularity")

    def _judge_releases(self, num_new: int, releases: list[release_pb2.Release], num_replayed: int) -> None:
        """`num_new` releases answered that were not live before the replay; the gate may not have decided."""
        are_few = num_replayed < (MIN_RELEASES + 1) * self.settings.learner_service.release_interval_events
        is_open = are_few or any(GATE_UNDECIDED in release.reason for release in releases)
        if num_new < MIN_RELEASES and is_open:
            self.findings.leave_open(
                f"whether more than {num_new} releases would go live: too few events for the gate to compare"
            )
            return
        self.findings.promise(
            num_new >= MIN_RELEASES, f"{num_new} releases went live during the replay, not {MIN_RELEASES}"
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
