"""A small world for the learner's tests: items with vectors of their own, users with a taste, a tiny model.

Knows nothing of the service; `make_world` is the same in every run.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.decoding.config import SearchConfig
from models.networks.config import ModelConfig
from models.online.config import LearnerConfig
from models.tokenizers.config import CodebookConfig
from models.training.config import TrainConfig
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item
from services.settings import (
    BrokerSettings,
    EndpointSettings,
    LearnerServiceSettings,
    Settings,
    StoreSettings,
)
from tests.conftest import find_port_pair

NUM_ITEMS, NUM_USERS, NUM_GROUPS = 60, 40, 6
_CONTENT_DIM = 16
_START_MS = 1_600_000_000_000


@dataclass(frozen=True)
class World:
    """Items of a few kinds; each user likes one kind."""

    items: list[Item]
    events: list[Event]


def make_world(num_events: int, seed: int = 0) -> World:
    """`num_events` events, one a second."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(NUM_GROUPS, _CONTENT_DIM))
    items = []
    for n in range(NUM_ITEMS):
        vector = centres[n % NUM_GROUPS] + 0.3 * random.normal(size=_CONTENT_DIM)
        embedding = Embedding(modality="text", values=vector / np.linalg.norm(vector))
        items.append(Item(item_id=f"item-{n}", title=f"thing {n}", embeddings=[embedding]))
    events = []
    for n in range(num_events):
        user = int(random.integers(NUM_USERS))
        own = int(random.integers(NUM_ITEMS // NUM_GROUPS)) * NUM_GROUPS + user % NUM_GROUPS
        item = own if random.random() < 0.9 else int(random.integers(NUM_ITEMS))
        events.append(
            Event(
                event_id=f"event-{n}",
                user_id=f"user-{user}",
                item_id=f"item-{item}",
                action=Action.ACTION_CLICK,
                event_time_ms=_START_MS + 1000 * n,
            )
        )
    return World(items, events)


def small_settings(bootstrap: str, root: Path, **service: float) -> Settings:
    """A model that learns a batch in milliseconds, on free ports; `service` overrides learner settings."""
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "projector", "trends", "console")
    return Settings(
        broker=BrokerSettings(bootstrap_servers=bootstrap, num_partitions=2),
        store=StoreSettings(root=root),
        endpoints=EndpointSettings(**{name: find_port_pair() for name in names}, metrics_offset=1),
        codebook=CodebookConfig(num_levels=2, codebook_size=8, num_iterations=5),
        model=ModelConfig(d_model=16, num_layers=1, num_heads=2, max_history=10, dropout=0.0),
        search=SearchConfig(beam=8, num_dense=8),
        train=TrainConfig(max_epochs=1, batch_positions=256),
        learner=LearnerConfig(score_every=2, gate_every=1, reservoir_size=500),
        learner_service=replace(LearnerServiceSettings(batch_events=64, batch_wait_s=0.1), **service),
    )
