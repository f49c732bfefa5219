"""The documents say what is there: every path, module, link and make target that they name exists.

Documents are README.md, CONTRIBUTING.md, SECURITY.md and the pages under docs/.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pytest

from services.cli.settings import groups_of
from services.rpc.statuses import STATUS
from services.settings import BrokerSettings, EndpointSettings, Settings
from streaming.messages.topics import TOPICS

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("models", "services", "streaming", "protos")
MAX_README_LINES = 150

_TOP = "|".join([*PACKAGES, "tests", "deploy", "docs", "examples"])
# A folder with its slash, or a file with its ending; `*` stands for any name.
_PATH = re.compile(rf"(?<![\w./-])(?:{_TOP})/(?:[\w.*-]+/)*(?:[\w.*-]*\.[a-z]\w*)?(?![\w/*-])")
_MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/(-])")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")


def documents() -> list[Path]:
    pages = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [page for page in pages if page.exists()] + sorted((REPOSITORY / "docs").rglob("*.md"))


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


every_document = pytest.mark.parametrize("page", documents(), ids=name_of)


def is_there(path: str) -> bool:
    """Whether a path of the repository exists, or anything does that its `*` may stand for."""
    return any(REPOSITORY.glob(path)) if "*" in path else (REPOSITORY / path).exists()


def top_level_names(module: Path) -> set[str]:
    """What a module defines or imports, without importing it."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name()):
                names.add(node.target.id)
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name for alias in node.names}
    return names


def module_is_there(dotted: str) -> bool:
    """Whether `models.a.b`, or a name inside the module `models.a`, exists."""
    place = REPOSITORY
    parts = dotted.split(".")
    for n, part in enumerate(parts):
        if (place / part).is_dir():
            place = place / part
        elif (module := place / f"{part}.py").is_file():
            return n + 1 == len(parts) or parts[n + 1] in top_level_names(module)
        else:
            package = place / "__init__.py"
            return package.is_file() and part in top_level_names(package)
    return True


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_examples_of_what_is_found() -> None:
    text = "`models/a.py`, (tests/unit/), `docs/*.md`; not models/x, .headrace/learner or a/models/b.py"
    assert _PATH.findall(text) == ["models/a.py", "tests/unit/", "docs/*.md"]
    text = "`models.networks.config`, services.cli. Not models. Other, nor headrace.v1.services"
    assert _MODULE.findall(text) == ["models.networks.config", "services.cli"]
    assert module_is_there("models.networks.config.ModelConfig")
    assert not module_is_there("models.networks.config.Modell")
    assert not module_is_there("models.network")


@every_document
def test_every_path_is_there(page: Path) -> None:
    paths = _PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if not is_there(path)] == []


@every_document
def test_every_module_is_there(page: Path) -> None:
    modules = _MODULE.findall(page.read_text(encoding="utf-8"))
    assert [module for module in modules if not module_is_there(module)] == []


@every_document
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        place = page.parent / path if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


@every_document
def test_every_make_target_is_one(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    code = "\n".join(_CODE.findall(page.read_text(encoding="utf-8")))
    assert set(_MAKE.findall(code)) - targets == set()


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def rooms() -> Iterator[tuple[int, str]]:
    """Every room and shared module of the three packages with its layer, as import-linter holds it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        for package in contract.get("containers", ()):
            for layer, line in enumerate(contract["layers"], start=1):
                for room in line.split(" | "):
                    is_room = (REPOSITORY / package / room).is_dir()
                    yield layer, f"{package}/{room}{'/' if is_room else '.py'}"


def test_the_architecture_page_has_every_room_and_shared_module_in_its_layer() -> None:
    """A row may span layers: `| 7 to 8 | `a.py`, then `b.py` |`."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \| (`.+?`) \|", text, re.MULTILINE)
    told = []
    for first, last, cell in rows:
        layers = cell.split(", then ")
        assert int(last or first) - int(first) + 1 == len(layers), cell
        told += [
            (layer, name)
            for layer, names in enumerate(layers, start=int(first))
            for name in re.findall(r"`(.+?)`", names)
        ]
    assert sorted(told) == sorted(rooms())


@every_document
def test_every_variable_is_a_setting(page: Path) -> None:
    known = {one.variable for group in groups_of(Settings, Settings()) for one in group.settings}
    known |= {name.partition("__")[0] for name in known}
    named = set(re.findall(r"HEADRACE_[A-Z0-9_]*[A-Z0-9]", page.read_text(encoding="utf-8")))
    assert named - known == set()


def test_the_api_page_has_every_topic_and_call() -> None:
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    topics = [name for name in TOPICS if not name.endswith(".dlq")]
    assert [name for name in topics if f"| `{name}` |" not in text] == []
    for proto in (REPOSITORY / "protos").rglob("*.proto"):
        words = re.findall(r"^(?:service|  rpc) (\w+)", proto.read_text(encoding="utf-8"), re.MULTILINE)
        assert [word for word in words if f"`{word}`" not in text] == [], proto


def test_the_api_page_has_every_error_code() -> None:
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([A-Z]+(?:_[A-Z]+)*)` \|", text, re.MULTILINE)
    assert sorted(told) == sorted({code.name for code in STATUS.values()})


def test_the_readme_has_the_default_ports() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    endpoints = EndpointSettings()
    told = dict(re.findall(r"^\| (\d{4}) \| (.+?) \|$", text, re.MULTILINE))
    assert "gateway" in told[str(endpoints.gateway)]
    assert "console" in told[str(endpoints.console)]
    assert "broker" in told[BrokerSettings().bootstrap_servers.rpartition(":")[2]]
    assert f"| {endpoints.tokenizer} to {endpoints.learner} | tokenizer, generator, ranker, learner |" in text
    assert f"| {endpoints.projector}, {endpoints.trends} | projector, trends" in text
    assert f"gRPC port + {endpoints.metrics_offset}" in text


def test_no_document_names_what_only_one_machine_has() -> None:
    pages = chain(documents(), (REPOSITORY / "examples").glob("*"))
    told = [name_of(page) for page in pages if re.search(r"(?<![\w.])/(?:work|home|root)/", page.read_text())]
    assert told == []
