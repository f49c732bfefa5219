"""Open files: as many as the system lets this process have, and a line before they run out.

Every connection is one. A server without any left does not refuse: it cannot even take the connection that it
would refuse.
"""

import asyncio
import os
import resource
from pathlib import Path

import structlog

from services.metrics import OPEN_FILES

log = structlog.get_logger()

_INTERVAL_S = 5.0
_NEAR_SHARE = 0.8
_OPEN = Path("/proc/self/fd")


def raise_limit() -> int:
    """Raises the soft limit to the hard one; returns how many files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def count_open() -> int:
    """How many files this process has open; 0 where that cannot be told."""
    try:
        return len(os.listdir(_OPEN))
    except OSError:
        return 0


async def watch_open_files() -> None:
    """Counts the open files and says when they near the limit; until cancelled."""
    limit, is_near = resource.getrlimit(resource.RLIMIT_NOFILE)[0], False
    while True:
        num_open = count_open()
        OPEN_FILES.set(num_open)
        was_near, is_near = is_near, num_open >= _NEAR_SHARE * limit
        if is_near and not was_near:
            log.error(
                "open_files_near_limit",
                effect="new connections will not be taken; raise `ulimit -n`",
                num_open=num_open,
                limit=limit,
            )
        await asyncio.sleep(_INTERVAL_S)
