"""The one running world that the cases share."""

from collections.abc import Iterator

import pytest

from tests.cases.world import World, living_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Every service at work on the small world; started once for all cases."""
    with living_world(tmp_path_factory.mktemp("world")) as running:
        yield running
