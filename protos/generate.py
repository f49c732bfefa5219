"""Generates the typed Python stubs beside the `.proto` files: `python -m protos.generate`.

protoc writes `from headrace.v1 import ...`, which is the wire package; the Python package is
`protos.headrace.v1`, so the imports are rewritten. `--check` writes nothing and exits 1 when what
is committed differs from what would be generated.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parent
_IMPORT = re.compile(r"^(from|import) headrace\.v1", re.MULTILINE)
_MENTION = re.compile(r"(?<![\w./])headrace\.v1\.(\w+_pb2)")


def generate(out: Path) -> dict[Path, str]:
    """The generated files as {path relative to protos/: text}; raises RuntimeError if protoc fails."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{ROOT}", f"-I{well_known}"]
        + [f"--{kind}={out}" for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
        + sources
    )
    if code:
        raise RuntimeError(f"protoc failed with exit code {code}")
    texts = {}
    for path in sorted(out.rglob("*.py*")):
        text = _IMPORT.sub(r"\1 protos.headrace.v1", path.read_text())
        texts[path.relative_to(out)] = _MENTION.sub(r"protos.headrace.v1.\1", text)
    return texts


def main() -> int:
    """Writes or checks the stubs; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with what is committed")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        texts = generate(Path(folder))
    stale = [
        name
        for name, text in texts.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text
    ]
    if check and stale:
        sys.stderr.write(f"out of date: {', '.join(map(str, stale))}; run `make protos`\n")
        return 1
    if not check:
        for name in stale:
            (ROOT / name).write_text(texts[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
