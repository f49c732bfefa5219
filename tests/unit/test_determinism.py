"""The same seed and events give the same bytes: weights, a release, a checkpoint and answers."""

from pathlib import Path

import pytest
import torch

from tests.regrouping.compare import differences
from tests.regrouping.probe import probe

_TREE = Path(__file__).parents[2]


@pytest.mark.parametrize("trunk", ["softmax", "hstu"])
def test_the_same_seed_and_events_twice_give_the_same_bytes(trunk: str) -> None:
    torch.set_num_threads(1)
    once, twice = probe(_TREE, trunk), probe(_TREE, trunk)
    assert differences(once, twice) == []
    assert len(once["loss curve"]) > 5
    assert {"recommender.safetensors", "catalogue.arrow", "manifest.json"} <= once["release"].keys()
    assert once["answers"] != once["answers after inserts and events"]
    first, restarted = once["a step after a restart"]
    assert first == restarted
