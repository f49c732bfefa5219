"""The learning thread: read, learn, checkpoint, cut releases; nothing else touches the model.

All state of the learner belongs to this one thread. Others read `status` and `is_learning`, or hand in
work with `submit`, which runs between two batches. A learner that cannot begin, or cannot follow what went
live, stays up, says why in `status.problem`, and tries again.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TypeVar

import structlog
import torch

from models.artifacts.release import ReleaseBundle
from models.errors import IncompatibleCheckpoint
from protos.headrace.v1.learner_pb2 import StatusResponse
from protos.headrace.v1.release_pb2 import Release
from services.errors import NotReady
from services.learner.beginning import CannotBegin, Interrupted, find_beginning, why_unloadable
from services.learner.checkpoints import CheckpointStore
from services.learner.commands import CommandQueue
from services.learner.locks import LearnerRunning
from services.learner.release_desk import ReleaseDesk
from services.learner.work import LearnerWork
from services.settings import Settings
from streaming.errors import BrokerUnavailable

T = TypeVar("T")

log = structlog.get_logger()

_IDLE_WAIT_S = 0.2
_START_RETRY_S = 1.0
_LIVE_RETRY_S = 10.0


class LearningLoop:
    """`run` in a thread of its own; `stop` from anywhere.

    `on_learning` is told on that thread whenever `is_learning` has changed.
    """

    def __init__(self, settings: Settings, *, on_learning: Callable[[bool], None] | None = None) -> None:
        self._settings = settings
        self._on_learning = on_learning or (lambda is_learning: None)
        self._store = CheckpointStore(settings.store.checkpoint_path)
        self._desk = ReleaseDesk(settings)
        self._commands = CommandQueue()
        self._stopping = threading.Event()
        self._paused = False
        self._work: LearnerWork | None = None
        self._problem = self._live_problem = ""
        self._must_look = threading.Event()
        self._look_again_s = float("inf")
        self._must_begin_again = False
        self.status = StatusResponse(state="waiting_for_release")

    @property
    def is_learning(self) -> bool:
        """Whether there is a model that learns (or is paused)."""
        return self._work is not None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """The future result of `work`, done by the learning thread between two batches.

        `status` shows what it did by the time the result is there.
        """

        def work_and_show() -> T:
            result = work()
            self._show_status()
            return result

        return self._commands.submit(work_and_show)

    def stop(self) -> None:
        """Ends `run` after the batch at work and a last checkpoint."""
        self._stopping.set()

    def went_live(self, release_id: str) -> None:
        """Notes that a release is live: one that is not ours, or may end our trouble, is looked at soon."""
        work = self._work
        if work is None or work.position.live_release_id != release_id or self._live_problem:
            self._must_look.set()

    def run(self) -> None:
        """Learns until `stop`. What it raises is our own failure: the process should end."""
        torch.set_num_threads(self._settings.torch_threads)
        try:
            while not self._stopping.is_set():
                with ExitStack() as resources:
                    work = self._begin(resources)
                    if work is not None:
                        self._learn(work)
        finally:
            self._commands.close()
            self.status = StatusResponse(state="stopping")

    def _learn(self, work: LearnerWork) -> None:
        """Learns until `stop`, or until the learner has to begin from another release."""
        self._work, self._must_begin_again = work, False
        self._on_learning(True)
        try:
            work.try_checkpoint()
            while not self._stopping.is_set() and not self._must_begin_again:
                self._commands.run_waiting()
                self._turn(work)
            work.try_checkpoint()
        finally:
            self._work = None
            self._on_learning(False)

    # -- what `submit` is for; called on the learning thread only --

    def checkpoint(self) -> int:
        """Writes a checkpoint; returns the number of events learned. Raises NotReady."""
        work = self._required()
        work.write_checkpoint()
        return work.position.num_learned

    def pause(self) -> None:
        """Stops reading."""
        self._required()
        self._paused = True

    def resume(self) -> None:
        """Goes on reading."""
        self._required()
        self._paused = False

    def promote(self, release_id: str) -> Release:
        """Makes a release live; the learner goes on from its own weights, anchored to that release.

        Where its codebook or architecture differs, the learner goes on from the release's weights.
        """
        bundle = self._desk.find(release_id)
        release = self._desk.promote(release_id)
        self._live_problem = ""
        if self._work is not None:
            self._follow(self._work, bundle)
        return release

    def rollback(self, reason: str) -> Release:
        """Makes the parent live; the learner goes on from the parent's weights and its own histories."""
        release, bundle = self._desk.rollback(reason)
        self._live_problem = ""
        if self._work is not None and self._work.learner.is_kin(bundle):
            self._work.go_back_to(bundle)
        elif self._work is not None:
            self._must_begin_again = True
        return release

    # -- the loop --

    def _required(self) -> LearnerWork:
        if self._work is None:
            raise NotReady("the learner waits for a first release: run `headrace train`")
        return self._work

    def _begin(self, resources: ExitStack) -> LearnerWork | None:
        """Waits for something to go on from and builds the learner from it; None if stopped before."""
        while not self._stopping.is_set():
            self._commands.run_waiting()
            with ExitStack() as attempt:
                try:
                    work = self._try_begin(attempt)
                except Interrupted:
                    return None
                except BrokerUnavailable as error:
                    self._wait("waiting_for_release", f"waits for the broker: {error}")
                except (CannotBegin, LearnerRunning) as error:
                    self._wait("refused", str(error))
                except (IncompatibleCheckpoint, OSError, ValueError) as error:
                    line = (
                        f"{type(error).__name__}: {error}; `headrace release list` shows what can be loaded"
                    )
                    self._wait("refused", line)
                else:
                    if work is not None:
                        resources.push(attempt.pop_all())
                        return work
                    self._wait("waiting_for_release", "")
            self._stopping.wait(_START_RETRY_S)
        return None

    def _wait(self, state: str, problem: str) -> None:
        """Shows why there is nothing to learn with, and logs it when it is news."""
        if problem and problem != self._problem:
            log.error("learner_waits", state=state, error=problem)
        self._problem = problem
        self.status = StatusResponse(state=state, problem=problem)

    def _try_begin(self, attempt: ExitStack) -> LearnerWork | None:
        attempt.enter_context(self._store.lock())
        found = find_beginning(
            self._settings, self._store, self._desk, self._stopping, self._commands.run_waiting
        )
        if found is None:
            return None
        learner, position = found.learner, found.position
        work = LearnerWork(self._settings, learner, position, self._store, attempt)
        self._problem, self._live_problem = found.problem, found.live_problem
        if found.problem or found.live_problem:
            log.error("learner_starts_with_a_problem", error=found.problem or found.live_problem)
        if found.live_problem:
            self._look_again_s = time.monotonic() + _LIVE_RETRY_S
        log.info("learner_starts", release_id=position.live_release_id, num_learned=position.num_learned)
        return work

    def _look_at_live(self, work: LearnerWork) -> None:
        """Takes up what is live now, if that is another release than the learner's."""
        self._must_look.clear()
        self._look_again_s = float("inf")
        live = self._desk.live()
        if live is None or live.release_id == work.position.live_release_id:
            self._live_problem = ""
            return
        if self._store.staged(live.release_id) is not None:
            self._must_begin_again = True
            return
        try:
            self._follow(work, self._desk.load(live.release_id))
            self._live_problem = ""
        except (IncompatibleCheckpoint, OSError) as error:
            self._live_problem = why_unloadable(live, error)
            self._look_again_s = time.monotonic() + _LIVE_RETRY_S
            log.error("release_refused", release_id=live.release_id, error=self._live_problem)

    def _follow(self, work: LearnerWork, bundle: ReleaseBundle) -> None:
        if work.learner.is_kin(bundle):
            work.follow(bundle)
        else:
            self._must_begin_again = True

    def _turn(self, work: LearnerWork) -> None:
        if self._paused:
            self._stopping.wait(_IDLE_WAIT_S)
        else:
            work.learn_next(self._stopping)
        work.checkpoint_if_due()
        try:
            if self._must_look.is_set() or time.monotonic() >= self._look_again_s:
                self._look_at_live(work)
            work.release_if_due(self._desk)
        except BrokerUnavailable as error:
            log.warning("broker_unavailable", error=str(error))
            self._look_again_s = time.monotonic() + _LIVE_RETRY_S
        except (OSError, IncompatibleCheckpoint) as error:
            # Learning goes on; the next release is tried after as many events again.
            log.error("release_failed", exc_info=error)
        self._show_status()

    def _show_status(self) -> None:
        if self._work is not None:
            status = self._work.status("paused" if self._paused else "learning")
            status.problem = "; ".join(text for text in (self._problem, self._live_problem) if text)
            self.status = status
