"""`headrace train` as a child of the demo: a modest release first, the whole training's after it.

A child, so that Ctrl-C ends it at once, whatever it computes. It says how far it is as lines of JSON; who
draws them may change meanwhile: the tour shows other things while the training goes on.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from models.progress import Progress, quietly
from services.environment import PREFIX
from services.errors import ServiceError
from services.settings import Settings, to_environment

_MAX_LINE_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A release of a training, and Recall@10 of it and of popularity on `num_events` held-out events.

    The same events for each release of a training; None where nothing was measured.
    """

    release_id: str
    num_events: int
    recall: float | None
    popularity_recall: float | None

    @classmethod
    def from_release(cls, release: Mapping[str, Any]) -> "Measured":
        """Of a release's record, as `message_dict` makes it."""
        metrics = release["metrics"]
        return cls(
            release_id=release["release_id"],
            num_events=int(metrics.get("num_compared", 0)),
            recall=metrics.get("compared_recall@10"),
            popularity_recall=metrics.get("compared_popularity_recall@10"),
        )


@dataclass
class Training:
    """A training that runs; its releases come one after the other."""

    process: asyncio.subprocess.Process
    progress: Progress = quietly
    _releases: asyncio.Queue[Measured | None] = field(default_factory=asyncio.Queue)

    async def next_release(self, progress: Progress) -> Measured:
        """Waits for the next release that went live, its progress shown meanwhile.

        Raises ServiceError where the training failed: it has said why on stderr.
        """
        self.progress = progress
        try:
            release = await self._releases.get()
        finally:
            self.progress = quietly
        if release is None:
            raise ServiceError("the training failed; see above")
        return release

    async def read(self) -> None:
        """Takes what the child says, until it ends."""
        assert self.process.stdout is not None
        try:
            async for line in self.process.stdout:
                said = json.loads(line)
                if "release" in said:
                    self._releases.put_nowait(Measured.from_release(said["release"]))
                else:
                    self.progress(said["stage"], said["done"], said["total"], said["figures"])
        finally:  # whoever waits for a release is not left waiting
            self._releases.put_nowait(None)


@asynccontextmanager
async def running_training(settings: Settings, *, modest_s: float, whole_s: float) -> AsyncIterator[Training]:
    """A training from the topics of about `whole_s` seconds; killed where its block ends before it does."""
    arguments = ["--modest-seconds", f"{modest_s:g}", "--max-minutes", f"{whole_s / 60:g}"]
    # a variable of one setting would win over that of its group
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli.main", "train", "--from-topic", "--json-lines", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=others | to_environment(settings),
        limit=_MAX_LINE_BYTES,
    )
    training = Training(process)
    reading = asyncio.create_task(training.read())
    try:
        yield training
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
