"""The examples run as their first lines say."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.stack.supervisor import Stack
from streaming.datasets.folder import load_dataset
from tests.conftest import find_free_port
from tests.integration.learner_world import small_settings

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"


def run(*command: str) -> str:
    """What a command prints, run at the root of the repository; fails the test unless it exits with 0."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example(name: str, *arguments: str) -> str:
    return run(sys.executable, str(EXAMPLES / name), *arguments)


def test_train_and_evaluate_finds_the_pattern() -> None:
    printed = example("train_and_evaluate.py")
    [whole] = [line for line in printed.splitlines() if line.startswith("whole path")]
    assert float(whole.partition("'recall@10': ")[2].split(",")[0]) > 0.5


def test_own_vectors_make_a_data_folder(tmp_path: Path) -> None:
    assert str(tmp_path) in example("own_embeddings.py", "write", str(tmp_path))
    dataset = load_dataset(tmp_path)
    assert len(dataset) > 500
    assert {len(item.embeddings[0].values) for item in dataset.items} == {32}


async def test_the_clients_speak_to_a_stack(tmp_path: Path) -> None:
    """Without a release: a training would take longer than all the rest."""
    settings = small_settings(f"127.0.0.1:{find_free_port()}", tmp_path)
    gateway = settings.endpoints.address("gateway")
    async with Stack(settings):
        told = await asyncio.to_thread(example, "own_embeddings.py", "announce", gateway)
        assert "'item-120'" in told
        before, after = (await asyncio.to_thread(example, "client.py", "anna", gateway)).splitlines()
        assert "The newest item" in before
        assert "The newest item" not in after
        told = await asyncio.to_thread(run, str(EXAMPLES / "buf_curl.sh"), "anna", gateway)
        assert '"itemId": "example-1"' in told
