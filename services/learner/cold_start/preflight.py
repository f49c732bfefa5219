"""What a training needs, checked before it begins: finding out at the end is no use.

Imports nothing heavy: a refusal comes in the first second.
"""

import os
import shutil
import uuid
from pathlib import Path

from services.errors import BackendUnavailable, ServiceError
from services.learner.locks import training_lock
from services.releases.store import open_release_store
from services.settings import Settings
from services.state_folder import require_writable
from streaming.clients.topic_admin import existing_topics
from streaming.errors import BrokerUnavailable
from streaming.messages.topics import INTERACTIONS, ITEMS, RELEASES

_BROKER_TIMEOUT_S = 2.0
_MIN_FREE_BYTES = 256 * 1024**2


class CannotTrain(ServiceError):
    """Something that a training needs is not there; the text says what to do."""


def check_training(settings: Settings, *, from_topic: bool) -> None:
    """Raises CannotTrain, InvalidSettings, TrainingRunning or BackendUnavailable for what is missing first.

    `settings` with absolute paths of the state, as `find_state` returns them.
    """
    _check_broker(settings, (RELEASES, ITEMS, INTERACTIONS) if from_topic else (RELEASES, ITEMS))
    _check_folder(settings.store.root)
    _check_release_store(settings.store.releases_url)
    with training_lock(settings.store.checkpoint_path):
        pass


def check_folder_of_data(data: Path) -> None:
    """Raises CannotTrain if the data folder cannot be read."""
    if not os.access(data, os.R_OK | os.X_OK):
        raise CannotTrain(f"{data} cannot be read by this user")


def _check_broker(settings: Settings, topics: tuple[str, ...]) -> None:
    bootstrap = settings.broker.bootstrap_servers
    try:
        present = existing_topics(bootstrap, timeout_s=_BROKER_TIMEOUT_S)
    except BrokerUnavailable as error:
        raise BackendUnavailable(
            f"no broker answers at {bootstrap}, where the release is to be announced: start `headrace up` in "
            "another shell and train beside it, or set HEADRACE_BROKER__BOOTSTRAP_SERVERS"
        ) from error
    missing = sorted(set(topics) - present)
    if missing:
        raise CannotTrain(
            f"the broker at {bootstrap} has no topic {', '.join(missing)}: `headrace up` makes them"
        )


def _check_folder(root: Path) -> None:
    require_writable(root)
    free = shutil.disk_usage(root).free
    if free < _MIN_FREE_BYTES:
        raise CannotTrain(
            f"the state folder {root} has {free / 1024**2:.0f} MiB free; a checkpoint and a release need "
            f"{_MIN_FREE_BYTES / 1024**2:.0f}: make room or set HEADRACE_STORE__ROOT"
        )


def _check_release_store(url: str) -> None:
    filesystem, path = open_release_store(url)
    try:
        filesystem.makedirs(path, exist_ok=True)
        probe = f"{path}/.probe-{uuid.uuid4().hex[:8]}"
        filesystem.pipe_file(probe, b"x")
        filesystem.rm_file(probe)
    except (OSError, ImportError, ValueError) as error:
        raise CannotTrain(f"the release store {url} cannot be written: {error}") from error
