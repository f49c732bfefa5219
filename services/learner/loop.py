"""The learning thread: read, learn, checkpoint, cut releases; nothing else touches the model.

All state of the learner belongs to this one thread. Others read `status` and `is_learning`, or hand in
work with `submit`, which runs between two batches.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TypeVar

import structlog
import torch

from models.errors import IncompatibleCheckpoint
from protos.headrace.v1.learner_pb2 import StatusResponse
from protos.headrace.v1.release_pb2 import Release
from services.errors import NotReady
from services.learner.checkpoints import CheckpointStore, LearnerRunning
from services.learner.commands import CommandQueue
from services.learner.releases import ReleaseDesk
from services.learner.start import Interrupted, learner_from_release
from services.learner.work import LearnerWork
from services.settings import Settings
from streaming.errors import BrokerUnavailable

T = TypeVar("T")

log = structlog.get_logger()

_IDLE_WAIT_S = 0.2
_START_RETRY_S = 1.0


class LearningLoop:
    """`run` in a thread of its own; `stop` from anywhere."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = CheckpointStore(settings.store.checkpoint_path)
        self._desk = ReleaseDesk(settings)
        self._commands = CommandQueue()
        self._stopping = threading.Event()
        self._paused = False
        self._work: LearnerWork | None = None
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

    def run(self) -> None:
        """Learns until `stop`. What it raises is our own failure: the process should end."""
        torch.set_num_threads(self._settings.torch_threads)
        try:
            with ExitStack() as resources:
                work = self._begin(resources)
                if work is None:
                    return
                self._work = work
                work.write_checkpoint()
                while not self._stopping.is_set():
                    self._commands.run_waiting()
                    self._turn(work)
                work.write_checkpoint()
        finally:
            self._work = None
            self._commands.close()
            self.status = StatusResponse(state="stopping")

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
        """Makes a release live; the learner goes on from its own weights, anchored to that release."""
        bundle = self._desk.find(release_id)
        if self._work is not None:
            self._work.follow(bundle)
        return self._desk.promote(release_id)

    def rollback(self, reason: str) -> Release:
        """Makes the parent live; the learner goes on from the parent's weights and its own histories."""
        release, bundle = self._desk.rollback(reason)
        if self._work is not None:
            self._work.go_back_to(bundle)
        return release

    # -- the loop --

    def _required(self) -> LearnerWork:
        if self._work is None:
            raise NotReady("the learner waits for a first release: run `headrace train`")
        return self._work

    def _begin(self, resources: ExitStack) -> LearnerWork | None:
        """Waits for a checkpoint or a live release and builds the learner from it; None if stopped before."""
        while not self._stopping.is_set():
            self._commands.run_waiting()
            with ExitStack() as attempt:
                try:
                    work = self._try_begin(attempt)
                except BrokerUnavailable as error:
                    log.warning("broker unavailable", problem=str(error))
                    work = None
                except Interrupted:
                    return None
                if work is not None:
                    resources.push(attempt.pop_all())
                    return work
            self._stopping.wait(_START_RETRY_S)
        return None

    def _try_begin(self, attempt: ExitStack) -> LearnerWork | None:
        try:
            attempt.enter_context(self._store.lock())
        except LearnerRunning:
            return None  # `headrace train` is writing the first checkpoint, or another learner runs
        found = self._store.load()
        live = self._desk.live()
        if found is None:
            if live is None:
                return None
            bundle = self._desk.load(live.release_id)
            found = learner_from_release(self._settings, bundle, self._stopping)
        learner, position = found
        work = LearnerWork(self._settings, learner, position, self._store, attempt)
        if live is not None and live.release_id != position.live_release_id:
            # Promoted while no learner was there, or by a learner that died before its next checkpoint.
            work.follow(self._desk.load(live.release_id))
        log.info("learner starts", release=position.live_release_id, num_learned=position.num_learned)
        return work

    def _turn(self, work: LearnerWork) -> None:
        if self._paused:
            self._stopping.wait(_IDLE_WAIT_S)
        else:
            work.learn_next(self._stopping)
        work.checkpoint_if_due()
        try:
            work.release_if_due(self._desk)
        except (BrokerUnavailable, OSError, IncompatibleCheckpoint) as error:
            # Learning goes on; the next release is tried after as many events again.
            log.error("release failed", exc_info=error)
        self._show_status()

    def _show_status(self) -> None:
        if self._work is not None:
            self.status = self._work.status("paused" if self._paused else "learning")
