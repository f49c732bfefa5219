"""A release on disk: codebook, catalogue, both networks and the live statistics as one atomic unit.

It knows what belongs together and checks that it does; `models/artifacts/checkpoint.py` does the files. Where
releases are announced, and which one is live, is not known here.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.artifacts.checkpoint import Checkpoint, load, save
from models.artifacts.manifest import JsonValue, Manifest
from models.artifacts.release_meta import ReleaseMeta, config_hash, parse_meta
from models.catalogue.index import CatalogueIndex
from models.errors import IncompatibleCheckpoint
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.tokenizers.codebook import Codebook

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

# What makes a tensor of a size that is asked for.
_MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange})
_FEW_NUMBERS = 1_000_000

_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ReleaseBundle:
    """Everything that is served together. Networks that were loaded are in evaluation mode."""

    recommender: GenerativeRecommender
    ranker: Ranker
    catalogue: CatalogueIndex
    statistics: LiveStatistics
    meta: ReleaseMeta


def save_release(root: Path, bundle: ReleaseBundle) -> Manifest:
    """Writes `root / release_id`, whole or not at all.

    Raises ValueError for an id that is no plain name or a meta that does not fit the parts,
    FileExistsError if there is such a release, IncompatibleCheckpoint for a NaN or infinity.
    """
    meta, model, statistics = bundle.meta, bundle.recommender.config, bundle.statistics.config
    if not _SAFE_ID.fullmatch(meta.release_id):
        raise ValueError(f"{meta.release_id!r} cannot name a release")
    if meta.codebook_version != bundle.catalogue.codebook.version:
        raise ValueError(f"codebook {bundle.catalogue.codebook.version}, not {meta.codebook_version}")
    if meta.config_hash != config_hash(model, statistics):
        raise ValueError("config_hash is not that of the bundle's configs")
    statistics_tensors, statistics_table = bundle.statistics.state()
    document: dict[str, JsonValue] = {
        "release": asdict(meta),
        "model": asdict(model),
        "statistics": asdict(statistics),
        "ranker_num_features": bundle.ranker.num_features,
    }
    return save(
        root / meta.release_id,
        tensors={
            "codebook": {"centroids": bundle.catalogue.codebook.centroids_LVE},
            "recommender": bundle.recommender.state_dict(),
            "ranker": bundle.ranker.state_dict(),
            "statistics": statistics_tensors,
        },
        tables={"catalogue": bundle.catalogue.to_table(), "statistics_items": statistics_table},
        meta=document,
    )


def load_release(directory: Path) -> ReleaseBundle:
    """Reads a release; raises IncompatibleCheckpoint unless every file verifies and all parts fit."""
    checkpoint = load(directory)
    meta, model, statistics_config, num_features = parse_meta(checkpoint.meta)
    codebook = _codebook(checkpoint, meta, model)
    # the random weights that loading replaces must not move the process's random numbers
    with torch.random.fork_rng(devices=[]):
        recommender = _network(checkpoint, "recommender", lambda: GenerativeRecommender(model))
        ranker = _network(checkpoint, "ranker", lambda: Ranker(model, num_features))
    return ReleaseBundle(
        recommender=recommender,
        ranker=ranker,
        catalogue=CatalogueIndex.from_table(_table(checkpoint, "catalogue"), codebook),
        statistics=_statistics(checkpoint, statistics_config),
        meta=meta,
    )


def _group(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """A group of tensors, taken out of the checkpoint."""
    if name not in checkpoint.tensors:
        raise IncompatibleCheckpoint("missing_file", f"the release has no tensors {name!r}")
    return checkpoint.tensors.pop(name)


def _table(checkpoint: Checkpoint, name: str) -> pa.Table:
    if name not in checkpoint.tables:
        raise IncompatibleCheckpoint("missing_file", f"the release has no table {name!r}")
    return checkpoint.tables.pop(name)


def _codebook(checkpoint: Checkpoint, meta: ReleaseMeta, model: ModelConfig) -> Codebook:
    try:
        codebook = Codebook(_group(checkpoint, "codebook")["centroids"])
    except (KeyError, ValueError) as error:
        raise IncompatibleCheckpoint("shape", f"codebook: {error}") from error
    shape = tuple(codebook.centroids_LVE.shape)
    if shape != (model.num_levels, model.codebook_size, model.content_dim):
        raise IncompatibleCheckpoint("shape", f"codebook of shape {shape} for a model of {model}")
    if codebook.version != meta.codebook_version:
        raise IncompatibleCheckpoint("codebook", f"codebook {codebook.version}, not {meta.codebook_version}")
    return codebook


def _network(checkpoint: Checkpoint, name: str, make: Callable[[], _Network]) -> _Network:
    """The network with the saved weights."""
    tensors = _group(checkpoint, name)
    with _AtMost(2 * sum(value.numel() for value in tensors.values())):
        network = make()
    expected = {key: (value.shape, value.dtype) for key, value in network.state_dict().items()}
    found = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    if found != expected:
        wrong = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        raise IncompatibleCheckpoint("shape", f"{name}: {', '.join(wrong[:5])} do not fit the config")
    network.load_state_dict(tensors)
    return network.eval()


class _AtMost(TorchFunctionMode):
    """Lets a network be built of about so many numbers in all, so that no config can ask for much more.

    Building it on the `meta` device first would do the same, but imports 870 modules: 2 s and 75 MB a
    process.
    """

    def __init__(self, num_numbers: int) -> None:
        self._left = num_numbers + _FEW_NUMBERS

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _MAKERS:
            sizes = args[0] if isinstance(args[0], tuple) else args
            # small tensors count, too: there may be many
            self._left -= math.prod(size for size in sizes if isinstance(size, int)) + _FEW_NUMBERS // 1000
            if self._left < 0:
                raise IncompatibleCheckpoint("shape", "the config asks for more numbers than there are")
        return func(*args, **(kwargs or {}))


def _statistics(checkpoint: Checkpoint, config: StatisticsConfig) -> LiveStatistics:
    tensors, table = dict(_group(checkpoint, "statistics")), _table(checkpoint, "statistics_items")
    try:
        return LiveStatistics.from_state(config, tensors, table)
    except (KeyError, ValueError) as error:
        raise IncompatibleCheckpoint("shape", f"statistics: {error}") from error
