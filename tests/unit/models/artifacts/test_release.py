"""A release goes out and comes back whole, or is refused with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.artifacts.checkpoint import load, save
from models.artifacts.manifest import json_sha256
from models.artifacts.release import ReleaseBundle, load_release, save_release
from models.artifacts.release_meta import ReleaseMeta, config_hash
from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.errors import IncompatibleCheckpoint
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.live_statistics import LiveStatistics
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

MODEL = ModelConfig(content_dim=6, num_levels=2, codebook_size=8, d_model=16, num_layers=1, ranker_dim=8)
STATISTICS = StatisticsConfig()
HISTORY = HistoryBatch.from_lists([[0, 3]], [[2, 2]], [[1_000, 2_000]], max_history=5)


def make_bundle(release_id: str = "r1") -> ReleaseBundle:
    torch.manual_seed(0)
    content = torch.randn(20, 6)
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(20)], content, np.arange(20, dtype=np.int64))
    statistics = LiveStatistics(STATISTICS)
    statistics.update_many(["u", "u", "v"], ["i0", "i3", "i0"], [2, 2, 5], [1_000, 2_000, 3_000])
    return ReleaseBundle(
        recommender=GenerativeRecommender(MODEL).eval(),
        ranker=Ranker(MODEL, 5).eval(),
        catalogue=catalogue,
        statistics=statistics,
        meta=ReleaseMeta(
            release_id=release_id,
            parent_release_id="",
            codebook_version=catalogue.codebook.version,
            created_time_ms=1_700_000_000_000,
            offsets={"interactions/0": 7},
            metrics={"recall@10": 0.05},
            config_hash=config_hash(MODEL, STATISTICS),
        ),
    )


def refused_reason(directory: Path) -> str:
    with pytest.raises(IncompatibleCheckpoint) as error:
        load_release(directory)
    return error.value.reason


def rewritten(directory: Path, target: Path, change: Callable[[dict, dict, dict], object]) -> Path:
    """A copy of a release with other content and right checksums."""
    old = load(directory)
    tensors = {name: dict(group) for name, group in old.tensors.items()}
    tables, meta = dict(old.tables), json.loads(json.dumps(old.meta))
    change(tensors, tables, meta)
    save(target, tensors=tensors, tables=tables, meta=meta)
    return target


def test_a_release_comes_back_whole(tmp_path: Path) -> None:
    bundle = make_bundle()
    save_release(tmp_path, bundle)
    random_state = torch.get_rng_state()
    loaded = load_release(tmp_path / "r1")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.meta == bundle.meta
    assert loaded.recommender.config == MODEL
    assert not loaded.recommender.training
    assert not loaded.ranker.training
    assert loaded.catalogue.to_table().equals(bundle.catalogue.to_table())
    assert loaded.statistics.config == STATISTICS
    assert loaded.statistics.trending(5) == bundle.statistics.trending(5)
    with torch.inference_mode():
        for one in (bundle, loaded):
            one.catalogue.insert("new", one.catalogue.assign(torch.ones(6)), torch.ones(6))
        states = [
            one.recommender.last_state(
                HISTORY, one.recommender.encode_items(one.catalogue.codes_NC, one.catalogue.content_NE)
            )
            for one in (bundle, loaded)
        ]
    assert torch.equal(states[0], states[1])


def test_a_release_is_written_once_and_under_a_plain_name(tmp_path: Path) -> None:
    bundle = make_bundle()
    save_release(tmp_path, bundle)
    with pytest.raises(FileExistsError):
        save_release(tmp_path, bundle)
    for wrong in [
        {"release_id": "../r2"},
        {"release_id": ""},
        {"release_id": "r2", "codebook_version": "other"},
        {"release_id": "r2", "config_hash": "other"},
        {"release_id": "r2", "metrics": {"recall@10": float("nan")}},
    ]:
        with pytest.raises(ValueError):
            save_release(tmp_path, replace(bundle, meta=replace(bundle.meta, **wrong)))
    with torch.no_grad():
        bundle.ranker.output.bias[0] = torch.inf
    with pytest.raises(IncompatibleCheckpoint, match="infinity"):
        save_release(tmp_path, replace(bundle, meta=replace(bundle.meta, release_id="r2")))
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]


def test_the_config_hash_follows_the_configs() -> None:
    assert config_hash(MODEL, STATISTICS) == config_hash(replace(MODEL), replace(STATISTICS))
    assert config_hash(MODEL, STATISTICS) != config_hash(replace(MODEL, d_model=32), STATISTICS)


def test_parts_that_do_not_fit_are_refused_although_every_checksum_is_right(tmp_path: Path) -> None:
    save_release(tmp_path, make_bundle())

    def reason(name: str, change: Callable[[dict, dict, dict], object]) -> str:
        return refused_reason(rewritten(tmp_path / "r1", tmp_path / name, change))

    def other_model(meta: dict, **changes: int) -> None:
        meta["model"].update(changes)
        meta["release"]["config_hash"] = json_sha256(
            {"model": meta["model"], "statistics": meta["statistics"]}
        )

    assert reason("a", lambda t, _b, _m: t.pop("ranker")) == "missing_file"
    assert reason("b", lambda _t, b, _m: b.pop("catalogue")) == "missing_file"
    assert reason("c", lambda t, _b, _m: t["recommender"].popitem()) == "shape"
    assert reason("d", lambda t, _b, _m: t["ranker"].update(more=torch.zeros(1))) == "shape"
    assert reason("e", lambda _t, _b, m: other_model(m, d_model=32)) == "shape"
    assert reason("f", lambda _t, _b, m: other_model(m, d_model=16_384)) == "shape"
    assert reason("g", lambda _t, _b, m: other_model(m, content_dim=7)) == "shape"
    assert reason("h", lambda _t, _b, m: m["release"].update(codebook_version="x")) == "codebook"
    assert reason("i", lambda t, _b, _m: t["codebook"].clear()) == "shape"
    assert reason("j", lambda _t, _b, m: m["model"].update(depth=3)) == "format"
    assert reason("k", lambda _t, _b, m: m["model"].update(d_model=32)) == "format"
    assert reason("l", lambda _t, _b, m: m.pop("release")) == "format"
    assert reason("m", lambda t, _b, _m: t["statistics"].update(total=torch.zeros(1))) == "shape"
    assert reason("n", lambda _t, b, _m: b.update(catalogue=b["statistics_items"])) == "format"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    with torch.no_grad():
        bundle.recommender.empty_state[0] = torch.nan
    with monkeypatch.context() as patch:
        patch.setattr("models.artifacts.checkpoint._require_finite_tensors", lambda *_: None)
        save_release(tmp_path, bundle)
    assert refused_reason(tmp_path / "r1") == "non_finite"


def test_a_file_swapped_for_another_release_s_is_refused(tmp_path: Path) -> None:
    save_release(tmp_path, make_bundle())
    path = tmp_path / "r1" / "ranker.safetensors"
    path.write_bytes(safetensors.torch.save(Ranker(MODEL, 5).state_dict()))
    assert refused_reason(tmp_path / "r1") == "checksum"
