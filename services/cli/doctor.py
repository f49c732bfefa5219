"""`headrace doctor`: is this machine fit to run Headrace, and what is wrong if not."""

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from services.cli import calls, terminal
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    from services.rpc.state import State

_PACKAGES = (
    "torch",
    "grpcio",
    "protobuf",
    "kafka-python",
    "aiokafka",
    "faust-streaming",
    "lmdb",
)
# Which of the two depends on the extra that was installed, `cpu` or `gpu`.
_FAISS_BUILDS = ("faiss-cpu", "faiss-gpu")
_MIN_FREE_BYTES = 2 * 1024**3
_LEARNER_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Check:
    """`state` is ok, warn (works, but mind this) or fail."""

    name: str
    state: str
    detail: str


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", "ok" if ok else "fail", f"{platform.python_version()} (3.11 or newer)")


def _packages() -> Check:
    found: list[str] = []
    missing: list[str] = []
    for name in (*_PACKAGES, *_FAISS_BUILDS):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    builds = [name for name in _FAISS_BUILDS if name not in missing]
    if len(builds) > 1:
        return Check("packages", "fail", f"{' and '.join(builds)} stand side by side: uninstall one of them")
    missing = [name for name in missing if name not in _FAISS_BUILDS] + ([] if builds else ["faiss"])
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}; run `make setup`")
    return Check("packages", "ok", ", ".join(found))


def _device() -> Check:
    import torch

    from models.device import compute_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    return Check("compute", "ok", f"{device.type}, {dtype} (measured), torch {torch.__version__}")


def _state(settings: Settings) -> "tuple[Check, State]":
    """Where the state is, and the settings that say so; the given ones where it cannot be told."""
    from services.rpc.state import State, StateElsewhere, find_state

    try:
        found = find_state(settings)
    except StateElsewhere as error:
        return Check("state", "fail", str(error)), State(settings=settings)
    told = f"told by {found.answered_by}" if found.answered_by else "this folder's own; no service answers"
    root = found.settings.store.root
    try:
        there = "" if root.exists() else "; not there yet, `headrace up` makes it"
    except OSError as error:
        return Check("state", "fail", f"{root}: {error.strerror or error}"), found
    return Check("state", "ok", f"{root} ({told}{there})"), found


def _disk(settings: Settings) -> Check:
    root = settings.store.root.absolute()
    try:
        existing = next(path for path in (root, *root.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        problem = f"nothing can be written in {root} ({error.strerror or error}): set HEADRACE_STORE__ROOT"
        return Check("disk", "fail", problem)
    free = shutil.disk_usage(existing).free
    state = "ok" if free >= _MIN_FREE_BYTES else "warn"
    return Check("disk", state, f"{free / 1024**3:.1f} GiB free for {root}")


def _ports(settings: Settings, answered_by: str) -> Check:
    from services.errors import BackendUnavailable
    from services.stack.ports import check_ports

    if answered_by:
        return Check("ports", "ok", f"in use by the services that run: {answered_by} answers")
    try:
        check_ports(settings)
    except BackendUnavailable as error:
        return Check("ports", "fail", str(error))
    return Check("ports", "ok", "all free: `headrace up` can start")


def _broker(settings: Settings) -> list[Check]:
    from kafka.errors import KafkaError

    from streaming.clients.topic_admin import existing_topics
    from streaming.errors import BrokerUnavailable
    from streaming.messages.topics import TOPICS

    servers = settings.broker.bootstrap_servers
    try:
        present = existing_topics(servers)
    except (BrokerUnavailable, KafkaError, OSError) as error:
        detail = " ".join(str(error).split())
        return [Check("broker", "warn", f"{servers} does not answer ({detail}); `headrace up` starts one")]
    missing = sorted(set(TOPICS) - present)
    topics = Check("topics", "ok", f"{len(TOPICS)} there")
    if missing:
        topics = Check("topics", "warn", f"missing: {', '.join(missing)}; `headrace up` makes them")
    return [Check("broker", "ok", f"{servers} answers"), topics]


def _learner(settings: Settings) -> Check:
    import grpc

    from protos.headrace.v1.learner_pb2 import StatusRequest
    from services.errors import BackendUnavailable

    try:
        with calls.learner(settings) as stub:
            status = stub.Status(StatusRequest(), timeout=_LEARNER_TIMEOUT_S)
    except (BackendUnavailable, grpc.RpcError):
        return Check("learner", "warn", "does not answer (right if `headrace up` does not run)")
    said = [text for text in (status.problem, status.stalled) if text]
    return Check("learner", "warn" if said else "ok", "; ".join([status.state, *said]))


def _release_store(settings: Settings) -> Check:
    import fsspec

    url = settings.store.releases_url
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        releases = filesystem.ls(path, detail=False) if filesystem.exists(path) else []
    except (OSError, ImportError, ValueError) as error:
        return Check("release store", "fail", f"{url}: {error}")
    names = [Path(name).name for name in releases]
    num_releases = sum(not name.startswith(".") for name in names)
    return Check("release store", "ok", f"{url}: {num_releases} release{'s' * (num_releases != 1)}")


def run_checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which a person would fix what fails."""
    state, found = _state(settings)
    settings = found.settings
    singles: list[Callable[[], Check]] = [
        _python,
        _packages,
        _device,
        lambda: state,
        lambda: _disk(settings),
        lambda: _ports(settings, found.answered_by),
    ]
    return [*(check() for check in singles), *_broker(settings), _learner(settings), _release_store(settings)]


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine; exit code 1 if something must be mended."""
    checks = run_checks(load_settings())
    if json:
        terminal.print_json([asdict(check) for check in checks])
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        rows = [(check.name, Text(check.state, style=colours[check.state]), check.detail) for check in checks]
        terminal.print_table("doctor", ["check", "", "what was found"], rows)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
