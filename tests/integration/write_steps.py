"""Stops a piece of work before each of its writes and lets a test look: what a kill -9 there would leave.

A step is everything by which a process changes what others see: a file opened for writing, a file or folder
made, renamed, removed or synced, a record handed to the producer, the producer flushed. Reading is none.
Python itself tells of most of them (audit events), so none can be forgotten; a file that a library opens is
seen when it is synced, written and not yet safe. What Python has buffered is not on the disk while the test
looks, just as after a kill.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from streaming.clients.producer import Producer

# each with the place of its `dir_fd` among its arguments
_CHANGES = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Steps:
    """Hears of the steps of one thread below one folder, and passes them on."""

    def __init__(self, under: str, look: Callable[[str], None]) -> None:
        self._under = under
        self._look = look
        self._thread = threading.get_ident()
        self.failure: BaseException | None = None
        self._is_looking = False

    def step(self, what: str, path: str) -> None:
        """One step is about to happen."""
        if self._is_looking or threading.get_ident() != self._thread or not path.startswith(self._under):
            return
        self._is_looking = True
        try:
            if self.failure is None:
                self._look(f"{what} {path.removeprefix(self._under)}".strip())
        except BaseException as error:
            # not raised in the midst of the work, whose own clean-up would hide what was seen
            self.failure = error
        finally:
            self._is_looking = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event."""
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and flags & _WRITING:
                self.step("open", os.fsdecode(path))
        elif event in _CHANGES:
            path, folder = os.fsdecode(arguments[0]), arguments[_CHANGES[event]]
            self.step(event, path if folder < 0 else os.path.join(_path_of(folder), path))


_heard_by: list[_Steps] = []
_is_hooked = False


def before_each_step(work: Callable[[], object], under: str, look: Callable[[str], None]) -> None:
    """Does `work`, calling `look` with the name of each step before it happens, and with "end".

    Steps on files are those below the folder `under`. Raises what `look` raised first.
    """
    global _is_hooked
    if not _is_hooked:
        # for the life of the process: there is no way to take one back
        sys.addaudithook(lambda event, arguments: [one.hear(event, arguments) for one in _heard_by] and None)
        _is_hooked = True
    steps = _Steps(under, look)
    sync, send, flush = os.fsync, Producer.send, Producer.flush

    def sync_and_tell(descriptor: int) -> None:
        steps.step("sync", _path_of(descriptor))
        sync(descriptor)

    def send_and_tell(producer: Producer, topic: str, *rest: Any) -> None:
        steps.step(f"send to {topic}", under)
        send(producer, topic, *rest)

    def flush_and_tell(producer: Producer) -> None:
        flush(producer)
        steps.step("flushed", under)

    with (
        mock.patch.object(os, "fsync", sync_and_tell),
        mock.patch.object(Producer, "send", send_and_tell),
        mock.patch.object(Producer, "flush", flush_and_tell),
    ):
        _heard_by.append(steps)
        try:
            work()
        finally:
            _heard_by.remove(steps)
    if steps.failure is not None:
        raise steps.failure
    look("end")


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
