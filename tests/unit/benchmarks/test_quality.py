"""The quality benchmark: its data, what its variants replace, and how rows become tables."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.candidates import Candidates
from models.evaluation.leave_one_out import split_leave_one_out
from models.training import objective
from streaming.datasets.folder import load_dataset
from tests.factories import MODEL, make_catalogue

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """The benchmark's modules; their names are importable only while the test runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import bench_quality

    yield bench_quality
    for name in set(sys.modules) - before:
        if name.startswith(("quality_", "bench_quality", "harness")):
            del sys.modules[name]


def row(system: str, seed: int | None, recall: float, **extra: object) -> dict[str, object]:
    figures = dict.fromkeys(("recall@5", "recall@10", "ndcg@5", "ndcg@10"), recall)
    key = {"system": system, "dataset": "d", "split": "test", "seed": seed}
    return {**key, "train_minutes": 1.0, **figures, **extra}


def test_generated_data_has_the_layout_and_a_sample_keeps_whole_users(bench, tmp_path: Path):
    from quality_data import generate, sample

    dataset = load_dataset(generate(tmp_path / "generated"))
    part = sample(dataset, 20)
    assert len(set(part.user_id_N)) == 20
    for user in set(part.user_id_N):
        assert (part.user_id_N == user).sum() == (dataset.user_id_N == user).sum()
    assert {item.item_id for item in part.items} == set(part.item_id_N)


def test_recbole_gets_the_order_of_our_split(bench, tmp_path: Path):
    from quality_data import load_problem
    from quality_sasrec import event_columns

    problem = load_problem("none", _generated(tmp_path), num_users=30)
    columns = event_columns(problem.events)
    last = {
        int(user): int(columns["position"][columns["user"] == user].max()) for user in set(columns["user"])
    }
    is_last = np.array([last[int(u)] == p for u, p in zip(columns["user"], columns["position"], strict=True)])
    test = split_leave_one_out(problem.events).test
    assert sorted(test.event_ids) == sorted(np.asarray(problem.events.event_ids)[is_last])


def _generated(tmp_path: Path) -> Path:
    from quality_data import generate

    return generate(tmp_path / "generated")


def test_without_the_folder_only_a_sample_is_generated(bench, monkeypatch: pytest.MonkeyPatch):
    import quality_data

    def missing(name: str) -> Path:
        raise FileNotFoundError(f"no data set {name!r}")

    monkeypatch.setattr(quality_data, "data_folder", missing)
    with pytest.raises(FileNotFoundError, match="no data set"):
        quality_data.load_problem("amazon_beauty", None, num_users=None)
    assert quality_data.load_problem("amazon_beauty", None, num_users=10).name == "generated-sample"


def test_rows_of_the_same_key_are_replaced(bench, monkeypatch: pytest.MonkeyPatch):
    stored: dict[str, object] = {"rows": [row("a", 0, 0.1), row("a", 1, 0.2), row("b", 0, 0.3)]}
    monkeypatch.setattr(bench, "load_results", lambda name, quick: stored)
    written = []
    monkeypatch.setattr(bench, "write_results", lambda name, payload, quick: written.append(payload))
    payload = bench.store([row("a", 1, 0.9), row("c", 0, 0.4)], threads=2, quick=False)
    assert written == [payload]
    found = {(r["system"], r["seed"]): r["recall@10"] for r in payload["rows"]}
    assert found == {("a", 0): 0.1, ("a", 1): 0.9, ("b", 0): 0.3, ("c", 0): 0.4}


def test_parts_and_seeds(bench):
    assert bench.chosen_parts("report") == []
    assert bench.chosen_parts("tiger,ablation:hstu") == ["tiger", "ablation:hstu"]
    assert set(bench.chosen_parts(None)) >= {"popularity", "sasrec", "tiger", "headrace", "ablation:default"}
    with pytest.raises(SystemExit, match="no part"):
        bench.chosen_parts("tigr")
    assert bench.seeds_of("headrace", None, quick=False) == [0, 1, 2]
    assert bench.seeds_of("tiger", None, quick=False) == [0]
    assert bench.seeds_of("tiger", "3,4", quick=False) == [3, 4]


def test_tables_say_mean_and_spread_and_mark_what_was_published(bench):
    from quality_report import summarised, system_cells

    rows = [row("ours", 0, 0.10), row("ours", 1, 0.12), row("theirs", None, 0.2, published="Table 2")]
    ours, theirs = (system_cells(one) for one in summarised(rows))
    assert ours["recall@10"] == ".1100 ± .0141"
    assert ours["num_seeds"] == 2
    assert theirs["system"] == "*theirs*"
    assert theirs["recall@10"] == ".2000"


def test_fusion_needs_both_sources_to_agree(bench):
    from quality_variants import fused

    candidates = Candidates(
        row_M=np.array([4, 5, 6]),
        source_M=np.zeros(3, dtype=np.int64),
        beam_M=np.array([-1.0, -2.0, np.nan], dtype=np.float32),
        dense_M=np.array([np.nan, 4.0, 2.0], dtype=np.float32),
    )
    assert fused(candidates).tolist() == [5, 4, 6]


def test_the_loss_over_all_codes_is_a_softmax_over_all_of_them(bench):
    from quality_variants import loss_over_all_codes

    catalogue = make_catalogue(12)
    codes_NC = catalogue.codes_NC
    logits_NCV = torch.randn(12, codes_NC.shape[1], 8, generator=torch.Generator().manual_seed(0))
    valid_NCV = torch.zeros(logits_NCV.shape, dtype=torch.bool).scatter_(2, codes_NC[..., None], True)
    whole = objective.code_loss
    assert float(objective.code_loss(logits_NCV, codes_NC, valid_NCV)) == 0.0
    with loss_over_all_codes(catalogue):
        expected = -logits_NCV.log_softmax(2).gather(2, codes_NC[..., None]).sum() / 12
        found = objective.code_loss(logits_NCV, codes_NC, valid_NCV)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert objective.code_loss is whole


def test_silenced_parts_and_detached_heads(bench):
    import quality_variants as variants

    catalogue = make_catalogue(12)
    codes_NC, content_NE = catalogue.codes_NC, catalogue.content_NE
    plain = variants.without_content(catalogue)(MODEL)
    torch.testing.assert_close(
        plain.encode_items(codes_NC, content_NE), plain.encode_items(codes_NC, 2 * content_NE)
    )
    item_ND = plain.encode_items(codes_NC, content_NE)
    state_XD = torch.randn(3, MODEL.d_model, requires_grad=True)
    code_only = variants.code_loss_only(catalogue)(MODEL)
    assert (
        not code_only.dense_logits(state_XD.detach(), code_only.item_vectors(item_ND.detach())).isnan().any()
    )
    dense_only = variants.dense_loss_only(catalogue)(replace(MODEL, dropout=0.0, decoder_dropout=0.0))
    dense_only.decoder(state_XD, codes_NC[:3]).sum().backward()
    assert state_XD.grad is None
    code_only.dense_queries(state_XD).sum().backward()
    assert state_XD.grad is None
