"""`headrace release`: the releases there are, and which one is live."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import calls, terminal
from services.errors import NotFound
from services.settings import load_settings

if TYPE_CHECKING:
    from protos.headrace.v1.release_pb2 import Release

app = typer.Typer(help="List, promote, roll back and compare releases.", no_args_is_help=True)
_BROKER_TIMEOUT_S = 2.0
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _state(release: "Release") -> str:
    from protos.headrace.v1.release_pb2 import ReleaseState

    return terminal.enum_word(ReleaseState.Name(release.state), "RELEASE_STATE_")


def _all_releases() -> "list[Release]":
    from services.rpc.state import find_state
    from streaming.clients.topic_admin import existing_topics

    settings = find_state(load_settings()).settings
    # fails at once if there is no broker; a reader would wait for one to come up
    existing_topics(settings.broker.bootstrap_servers, timeout_s=_BROKER_TIMEOUT_S)

    from services.releases.publisher import ReleasePublisher

    return list(ReleasePublisher(settings).list())


def _problems(releases: "Sequence[Release]") -> list[str]:
    """Why each release cannot be loaded, empty where it can."""
    from services.releases.store import release_store
    from services.rpc.state import StateElsewhere, find_state

    try:
        store = release_store(find_state(load_settings()).settings)
    except StateElsewhere as error:
        return [f"unknown: {error}"] * len(releases)
    return [store.problem(release.release_id) for release in releases]


@app.command("list")
def list_releases(json: JsonOption = False) -> None:
    """Every release that was announced, oldest first, and whether this version can load it."""
    releases = sorted(_all_releases(), key=lambda release: release.created_time_ms)
    problems = _problems(releases)
    if json:
        terminal.print_json(
            [
                terminal.message_dict(release) | {"problem": problem}
                for release, problem in zip(releases, problems, strict=True)
            ]
        )
        return
    if not releases:
        terminal.note("no release yet: `headrace train` makes the first")
        return
    rows = [
        (
            release.release_id,
            _state(release),
            problem or "yes",
            *_recalls(release),
            release.reason,
        )
        for release, problem in zip(releases, problems, strict=True)
    ]
    # an id begins with the time; `diff` and --json have the rest
    columns = ["release", "state", "loadable", "Recall@10", "popularity", "reason"]
    terminal.print_table("releases", columns, rows, numbers=columns[3:5], ids=columns[:5])


def _recalls(release: "Release") -> list[str]:
    """Recall@10 of a release and of popularity on the same events; a dash for what it does not say."""
    names = ("recall@10", "popularity_recall@10")
    return [f"{release.metrics[name]:.4f}" if name in release.metrics else "-" for name in names]


@app.command()
def promote(
    release_id: Annotated[str, typer.Argument(help="The release that everybody shall serve.")],
    json: JsonOption = False,
) -> None:
    """Make a published release the live one."""
    from protos.headrace.v1.learner_pb2 import PromoteRequest
    from services.rpc.state import find_state

    with calls.learner(find_state(load_settings()).settings) as stub:
        response = stub.Promote(PromoteRequest(release_id=release_id), timeout=calls.CALL_TIMEOUT_S)
    _show(response.release, json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for those who read the list.")] = "by hand",
    json: JsonOption = False,
) -> None:
    """Go back to the live release's parent, which was live when it was cut; the learner takes its weights."""
    from protos.headrace.v1.learner_pb2 import RollbackRequest
    from services.rpc.state import find_state

    with calls.learner(find_state(load_settings()).settings) as stub:
        response = stub.Rollback(RollbackRequest(reason=reason), timeout=calls.CALL_TIMEOUT_S)
    _show(response.release, json)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A release id.")],
    new: Annotated[str, typer.Argument(help="Another release id.")],
    json: JsonOption = False,
) -> None:
    """What differs between two releases: metrics, codebook, offsets, size."""
    releases = {release.release_id: release for release in _all_releases()}
    for name in (old, new):
        if name not in releases:
            raise NotFound(f"no release {name}; `headrace release list` names them")
    left, right = (_facts(releases[name]) for name in (old, new))
    differing = {
        name: (left.get(name), right.get(name))
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    }
    if json:
        terminal.print_json({name: {old: a, new: b} for name, (a, b) in differing.items()})
        return
    rows = [(name, "-" if a is None else a, "-" if b is None else b) for name, (a, b) in differing.items()]
    terminal.print_table("differences", ["", old, new], rows, numbers=(old, new))


def _facts(release: "Release") -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "state": _state(release),
        "parent": release.parent_release_id,
        "codebook": release.codebook_version,
        "config": release.config_hash,
        "size_bytes": sum(file.size_bytes for file in release.files),
    }
    facts |= {f"metric {name}": round(value, 6) for name, value in release.metrics.items()}
    facts |= {f"offset {at.topic}/{at.partition}": at.offset for at in release.offsets}
    return facts


def _show(release: "Release", json: bool) -> None:
    if json:
        terminal.print_json(terminal.message_dict(release))
    else:
        terminal.out.print(f"{release.release_id} is {_state(release)} ({release.reason})", highlight=False)
