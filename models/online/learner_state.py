"""The learner's checkpoint: everything it goes on from, and the caller's stream position, as one directory.

Knows which parts there are and how they fit together; `models.artifacts.checkpoint` owns the files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from models.artifacts.checkpoint import Checkpoint, load, save
from models.artifacts.manifest import JsonValue, Manifest
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.errors import IncompatibleCheckpoint
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.config import LearnerConfig
from models.online.memory import Memory
from models.online.optimiser_steps import OnlineTrainer
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.tokenizers.codebook import Codebook


@dataclass(frozen=True, kw_only=True)
class LearnerParts:
    """What a learner consists of."""

    trainer: OnlineTrainer
    memory: Memory
    catalogue: CatalogueIndex
    statistics: LiveStatistics
    search: SearchConfig


def save_parts(
    parts: LearnerParts, directory: Path, *, offsets: Mapping[str, int], extra: Mapping[str, JsonValue]
) -> Manifest:
    """Writes a new directory; raises what `models.artifacts.checkpoint.save` raises."""
    memory_tensors, memory_values = parts.memory.state()
    statistics_tensors, statistics_table = parts.statistics.state()
    trainer = parts.trainer
    return save(
        directory,
        tensors={
            **trainer.state(),
            **memory_tensors,
            "statistics": statistics_tensors,
            "codebook": {"centroids": parts.catalogue.codebook.centroids_LVE},
        },
        tables={"catalogue": parts.catalogue.to_table(), "statistics_items": statistics_table},
        meta={
            "model": asdict(trainer.recommender.config),
            "learner": asdict(trainer.config),
            "search": asdict(parts.search),
            "statistics": asdict(parts.statistics.config),
            "memory": memory_values,
            "ranker_num_features": trainer.ranker.num_features,
            "num_steps": trainer.num_steps,
            "dtype": str(trainer.dtype).removeprefix("torch."),
            "offsets": dict(offsets),
            "extra": dict(extra),
        },
    )


def load_parts(directory: Path) -> tuple[LearnerParts, dict[str, int], dict[str, Any]]:
    """The parts, offsets and extra of a directory; raises IncompatibleCheckpoint."""
    checkpoint = load(directory)
    try:
        parts = _parts(checkpoint)
        offsets = {str(key): int(value) for key, value in checkpoint.meta["offsets"].items()}
        return parts, offsets, dict(checkpoint.meta["extra"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        # load_state_dict raises RuntimeError where shapes or names differ
        raise IncompatibleCheckpoint(
            "format", f"{directory} is no learner's checkpoint: {error!r}"
        ) from error


def _parts(checkpoint: Checkpoint) -> LearnerParts:
    meta = checkpoint.meta
    tensors = checkpoint.tensors
    model = ModelConfig(**meta["model"])
    # a setting that there was when this was written, and is no more, decides nothing
    names = {field.name for field in fields(LearnerConfig)}
    config = LearnerConfig(**{name: value for name, value in meta["learner"].items() if name in names})
    statistics = StatisticsConfig(
        **{**meta["statistics"], "half_lives_s": tuple(meta["statistics"]["half_lives_s"])}
    )
    # the random weights that loading replaces must not move the process's random numbers
    with torch.random.fork_rng(devices=[]):
        trainer = OnlineTrainer(
            GenerativeRecommender(model),
            Ranker(model, int(meta["ranker_num_features"])),
            config,
            getattr(torch, meta["dtype"]),
        )
    trainer.load_state(tensors, int(meta["num_steps"]))
    codebook = Codebook(tensors["codebook"]["centroids"])
    return LearnerParts(
        trainer=trainer,
        memory=Memory.from_state(config, model.num_levels + 1, tensors, meta["memory"]),
        catalogue=CatalogueIndex.from_table(checkpoint.tables.pop("catalogue"), codebook),
        statistics=LiveStatistics.from_state(
            statistics, tensors["statistics"], checkpoint.tables["statistics_items"]
        ),
        search=SearchConfig(**meta["search"]),
    )
