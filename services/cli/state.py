"""`headrace state`: where the state of the service that commands talk to lives, and what is there.

Reads only: nothing is made, mended or waited for, and what cannot be read is said in its line.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from services.cli import calls, terminal
from services.cli.up import running_up
from services.errors import NotFound, ServiceError
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from services.learner.checkpoints import CheckpointStore
    from services.rpc.state import State

_NAME_WIDTH = 15
_BROKER_TIMEOUT_S = 2.0
_LEARNER_TIMEOUT_S = 2.0
# How often a checkpoint may vanish while it is looked at: a running learner prunes them.
_MAX_LOOKS = 3


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The learner's newest checkpoint; `problem` says why it cannot be read, empty where it can."""

    path: str
    time_ms: int = 0
    num_bytes: int = 0
    num_learned: int = 0
    num_items: int = 0
    live_release_id: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class StateFacts:
    """What there is; None for what is not there, or could not be asked.

    `answered_by` is the service that named the folder, empty where it is this folder's own. `live_known_by`
    is `releases` (the topic) or `checkpoint`. `up_pid` is that of a `headrace up` at work on the folder.
    """

    root: str
    answered_by: str
    exists: bool
    num_bytes: int
    up_pid: int | None
    releases_url: str
    live_release_id: str
    live_known_by: str
    checkpoint: CheckpointFacts | None
    staged_releases: list[str]
    num_users: int | None
    history_problem: str
    bootstrap_servers: str
    broker_answers: bool
    broker_path: str | None
    broker_bytes: int
    learner: str
    learner_problem: str
    stalled: str


def state(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Where the state of the running service is, or of this folder; exit code 1 if there is none."""
    from services.rpc.state import find_state

    facts = look(find_state(load_settings()))
    if json:
        terminal.print_json(asdict(facts))
    else:
        nothing = nothing_there(facts)
        if nothing:
            raise NotFound(nothing)
        for name, text in rows_of(facts):
            line = Text(f"{name:{_NAME_WIDTH}} ", style="bold").append(terminal.shown(text), style="not bold")
            terminal.out.print(line, highlight=False, soft_wrap=True)
    if nothing_there(facts):
        raise typer.Exit(1)


def look(found: "State") -> StateFacts:
    """All facts of a state that `find_state` found; takes seconds where a broker does not answer."""
    from services.learner.checkpoints import CheckpointStore

    settings, store = found.settings, found.settings.store
    checkpoints = CheckpointStore(store.checkpoint_path)
    checkpoint = _checkpoint(checkpoints)
    live, broker_answers = _live_by_topic(settings)
    known_by = "releases" if live else ""
    if not broker_answers and checkpoint is not None and checkpoint.live_release_id:
        live, known_by = checkpoint.live_release_id, "checkpoint"
    num_users, history_problem = _histories(store.history_path)
    learner, learner_problem, stalled = _learner(settings)
    has_broker = store.broker_path.is_dir()
    return StateFacts(
        root=str(store.root),
        answered_by=found.answered_by,
        exists=store.root.is_dir(),
        num_bytes=bytes_on_disk(store.root),
        up_pid=running_up(store.root),
        releases_url=store.releases_url,
        live_release_id=live,
        live_known_by=known_by,
        checkpoint=checkpoint,
        staged_releases=checkpoints.staged_releases(),
        num_users=num_users,
        history_problem=history_problem,
        bootstrap_servers=settings.broker.bootstrap_servers,
        broker_answers=broker_answers,
        broker_path=str(store.broker_path) if has_broker else None,
        broker_bytes=bytes_on_disk(store.broker_path),
        learner=learner,
        learner_problem=learner_problem,
        stalled=stalled,
    )


def nothing_there(facts: StateFacts) -> str:
    """One line with the next command where nothing runs and there is no folder; else empty."""
    if facts.exists or facts.answered_by:
        return ""
    return (
        f"no service answers and there is no state folder {facts.root}: `headrace up` makes one; "
        "in another shell, run this where `headrace up` was started or set HEADRACE_STORE__ROOT"
    )


def rows_of(facts: StateFacts) -> list[tuple[str, str]]:
    """The facts for people, a line each."""
    told = f"told by {facts.answered_by}" if facts.answered_by else "this folder's own; no service answers"
    if facts.up_pid:
        up = f"`headrace up` runs here, pid {facts.up_pid}"
    elif facts.answered_by:
        up = "no `headrace up`; the services that answer run without it, as in a demo"
    else:
        up = "`headrace up` does not run here"
    live = facts.live_release_id or ("none" if facts.broker_answers else "unknown")
    source = {
        "releases": "",
        "checkpoint": " (by the checkpoint: the broker does not answer)",
        "": "" if facts.broker_answers else " (the broker does not answer)",
    }[facts.live_known_by]
    rows = [
        ("state", f"{facts.root} ({told})"),
        ("size", _size(facts.num_bytes)),
        ("up", up),
        ("live release", live + source),
        ("release store", facts.releases_url),
        *_checkpoint_rows(facts),
        ("histories", facts.history_problem or _histories_text(facts.num_users)),
        ("broker", f"{facts.bootstrap_servers} {'answers' if facts.broker_answers else 'does not answer'}"),
        ("embedded broker", _embedded_text(facts)),
    ]
    if facts.learner:
        rows.append(("learner", ": ".join(filter(None, (facts.learner, facts.learner_problem)))))
    if facts.stalled:
        rows.append(("stream", facts.stalled))
    return rows


def bytes_on_disk(folder: Path) -> int:
    """Bytes that the files under a folder take, without holes or files that vanish; 0 without a folder."""
    num_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                num_bytes += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return num_bytes


def _checkpoint_rows(facts: StateFacts) -> list[tuple[str, str]]:
    checkpoint = facts.checkpoint
    staged = f"; of trainings, not taken over yet: {', '.join(facts.staged_releases)}"
    more = staged if facts.staged_releases else ""
    if checkpoint is None:
        return [("checkpoint", f"none{more}"), ("catalogue", "none")]
    if checkpoint.problem:
        return [("checkpoint", f"{checkpoint.path} cannot be read: {checkpoint.problem}{more}")]
    text = (
        f"{checkpoint.path}, {terminal.time_text(checkpoint.time_ms)} UTC, {_size(checkpoint.num_bytes)}, "
        f"{checkpoint.num_learned:,} events learned, of release {checkpoint.live_release_id}{more}"
    )
    return [("checkpoint", text), ("catalogue", f"{checkpoint.num_items:,} items, in the checkpoint")]


def _histories_text(num_users: int | None) -> str:
    return "none" if num_users is None else f"of {num_users:,} users"


def _embedded_text(facts: StateFacts) -> str:
    if facts.broker_path is None:
        return "has nothing here"
    return f"{facts.broker_path} ({_size(facts.broker_bytes)})"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1024**2:,.1f} MiB"


def _checkpoint(store: "CheckpointStore") -> CheckpointFacts | None:
    """The newest one, good or not; None where there is none."""
    from models.artifacts.checkpoint import verify
    from models.errors import IncompatibleCheckpoint

    for _ in range(_MAX_LOOKS):
        directory = store.newest_of_all()
        if directory is None:
            return None
        try:
            manifest = verify(directory)
            extra = manifest.meta["extra"]
            return CheckpointFacts(
                path=str(directory),
                time_ms=int(extra["checkpoint_time_ms"]),
                num_bytes=sum(file.size_bytes for file in manifest.files),
                num_learned=int(extra["num_learned"]),
                num_items=_num_rows(directory / "catalogue.arrow"),
                live_release_id=str(extra["live_release_id"]),
            )
        except (IncompatibleCheckpoint, OSError, KeyError, TypeError, ValueError) as error:
            if directory.is_dir():
                reason = f"{error.reason}: " if isinstance(error, IncompatibleCheckpoint) else ""
                return CheckpointFacts(path=str(directory), problem=f"{reason}{error}")
    return None


def _num_rows(path: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))


def _live_by_topic(settings: Settings) -> tuple[str, bool]:
    """The live release by the topic, empty where there is none; and whether the broker answers."""
    from services.releases.publisher import ReleasePublisher
    from streaming.clients.topic_admin import existing_topics
    from streaming.errors import BrokerUnavailable
    from streaming.messages.topics import RELEASES

    try:
        present = existing_topics(settings.broker.bootstrap_servers, timeout_s=_BROKER_TIMEOUT_S)
        return ReleasePublisher(settings).list().live_id if RELEASES in present else "", True
    except BrokerUnavailable:
        return "", False


def _histories(path: Path) -> tuple[int | None, str]:
    """How many users have one, None where there is no store; and why it cannot be read."""
    import lmdb

    from streaming.histories.store import HistoryStore

    if not (path / "data.mdb").exists():
        return None, ""
    try:
        store = HistoryStore.open(path, read_only=True)
    except (lmdb.Error, OSError) as error:
        return None, f"{path} cannot be read: {error}"
    try:
        return store.num_users(), ""
    finally:
        store.close()


def _learner(settings: Settings) -> tuple[str, str, str]:
    """The learner's state, its problem, and what of its stream is stalled; empty where none answers."""
    import grpc

    from protos.headrace.v1.learner_pb2 import StatusRequest

    try:
        with calls.learner(settings) as stub:
            status = stub.Status(StatusRequest(), timeout=_LEARNER_TIMEOUT_S)
    except (ServiceError, grpc.RpcError):
        return "", "", ""
    return status.state, status.problem, status.stalled
