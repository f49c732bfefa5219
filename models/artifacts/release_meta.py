"""What a release says of itself, read from its manifest alone: id, parent, codebook, offsets, configs.

Needs no torch: commands and the supervisor ask this of releases that they never load.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.artifacts.manifest import Manifest, json_sha256
from models.errors import IncompatibleCheckpoint
from models.networks.config import ModelConfig
from models.ranking.config import StatisticsConfig


@dataclass(frozen=True, kw_only=True)
class ReleaseMeta:
    """What a release says of itself.

    `parent_release_id` is the one that was live before it, empty for the first. `offsets` are the next ones
    to read, keyed "topic/partition". `metrics` are finite. `config_hash` is `config_hash()` of its configs.
    """

    release_id: str
    parent_release_id: str
    codebook_version: str
    created_time_ms: int
    offsets: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    config_hash: str


def config_hash(model: ModelConfig, statistics: StatisticsConfig) -> str:
    """Equal for releases of equal architecture and statistics: the sha256 of both in canonical JSON."""
    return json_sha256({"model": asdict(model), "statistics": asdict(statistics)})


def release_meta(manifest: Manifest) -> ReleaseMeta:
    """What the release with this manifest says of itself; raises IncompatibleCheckpoint if it is none."""
    return parse_meta(manifest.meta)[0]


def parse_meta(document: Mapping[str, Any]) -> tuple[ReleaseMeta, ModelConfig, StatisticsConfig, int]:
    """The meta, both configs and the ranker's number of features; raises IncompatibleCheckpoint."""
    try:
        meta = ReleaseMeta(**document["release"])
        model = ModelConfig(**document["model"])
        # JSON has no tuples
        settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document["statistics"].items()
        }
        statistics = StatisticsConfig(**settings)
        num_features = int(document["ranker_num_features"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IncompatibleCheckpoint("format", f"the manifest's meta: {error!r}") from error
    if meta.config_hash != config_hash(model, statistics):
        raise IncompatibleCheckpoint("format", "config_hash is not that of the configs")
    return meta, model, statistics, num_features
