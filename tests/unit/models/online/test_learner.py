"""The online learner: same events, same weights; nothing twice; it learns; only the better goes live."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import ACTION_NAMES, IMPRESSION, SKIP, EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.errors import IncompatibleCheckpoint
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.config import LearnerConfig
from models.online.learner import OnlineLearner
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.sequences.dedupe import hash_id
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

CLICK = ACTION_NAMES.index("click")
NUM_ITEMS, NUM_USERS = 40, 12
MODEL = ModelConfig(
    content_dim=8,
    num_levels=2,
    codebook_size=8,
    d_model=32,
    num_heads=4,
    num_layers=1,
    ranker_dim=16,
    max_history=8,
)
CONFIG = LearnerConfig(
    learning_rate=3e-3,
    score_every=4,
    reservoir_size=50,
    dedupe_window=500,
    gate_every=2,
    max_seen_events=6,
)


def make_learner(config: LearnerConfig = CONFIG, dtype: torch.dtype = torch.float32) -> OnlineLearner:
    torch.manual_seed(0)
    content = functional.normalize(torch.randn(NUM_ITEMS, 8))
    catalogue = CatalogueIndex(fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8)))
    catalogue.add_many([f"i{n}" for n in range(NUM_ITEMS)], content, np.full(NUM_ITEMS, 10**11))
    statistics = LiveStatistics(StatisticsConfig())
    return OnlineLearner(
        GenerativeRecommender(MODEL),
        Ranker(MODEL, len(feature_names(statistics.config))),
        catalogue,
        statistics,
        config,
        SearchConfig(beam=8, num_dense=8),
        dtype=dtype,
    )


def make_events(begin: int, end: int) -> EventBatch:
    """Users walk through the items in steps of one: the next item is known from the last."""
    number = np.arange(begin, end)
    user, step = number % NUM_USERS, number // NUM_USERS
    return EventBatch(
        event_ids=[f"e{n}" for n in number],
        user_ids=[f"u{n}" for n in user],
        item_N=((user * 3 + step) % NUM_ITEMS).astype(np.int64),
        action_N=np.where(number % 17 == 0, SKIP, CLICK).astype(np.int64),
        time_ms_N=(10**12 + number * 60_000).astype(np.int64),
        value_N=np.zeros(len(number)),
    )


def same_weights(left: OnlineLearner, right: OnlineLearner) -> bool:
    ours, theirs = left.trainer.state(), right.trainer.state()
    return all(
        torch.equal(tensor, theirs[group][name]) for group in ours for name, tensor in ours[group].items()
    )


def test_forecasts_are_what_serving_answers_whatever_the_training_step_computes_in() -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        step = make_learner(dtype=dtype).learn_many(make_events(0, 24)).step
        assert step is not None
        losses.append((step.ranker_loss, step.dense_loss))
    assert losses[0][0] == losses[1][0]  # before the step
    assert losses[0][1] != losses[1][1]  # of the step


def test_same_events_same_weights_also_across_save_and_load(tmp_path: Path) -> None:
    whole, twin, killed = make_learner(), make_learner(), make_learner()
    for begin in range(0, 240, 24):
        for learner in (whole, twin):
            learner.learn_many(make_events(begin, begin + 24))
        killed.learn_many(make_events(begin, begin + 24))
        if begin in (48, 144):
            killed.save(
                tmp_path / str(begin), offsets={"interactions/0": begin}, extra={"ledger_bytes": begin}
            )
            killed, offsets, extra = OnlineLearner.load(tmp_path / str(begin))
            assert offsets == {"interactions/0": begin}
            assert extra == {"ledger_bytes": begin}
    assert same_weights(whole, twin)
    assert same_weights(whole, killed)
    assert whole.quality.segments() == killed.quality.segments()
    assert whole.quality.curve() == killed.quality.curve()
    assert whole.gate() == killed.gate()
    now = 10**12 + 10**9
    for ours, theirs in zip(
        whole.recommend_many(["u1", "stranger"], 5, now),
        killed.recommend_many(["u1", "stranger"], 5, now),
        strict=True,
    ):
        assert ours.row_K.tolist() == theirs.row_K.tolist()
        np.testing.assert_array_equal(ours.score_K, theirs.score_K)


def test_a_repeated_event_changes_nothing() -> None:
    once, twice = make_learner(), make_learner()
    once.learn_many(make_events(0, 30))
    twice.learn_many(make_events(0, 30))
    report = twice.learn_many(make_events(10, 30))
    assert (report.num_learned, report.num_duplicates, report.step) == (0, 20, None)
    assert same_weights(once, twice)
    assert once.statistics.num_events == twice.statistics.num_events == 28  # the wishes
    mixed = twice.learn_many(make_events(25, 35))
    assert mixed.learned_N.tolist() == [False] * 5 + [True] * 5
    once.learn_many(make_events(30, 35))
    assert same_weights(once, twice)


def test_it_learns_and_beats_popularity() -> None:
    learner = make_learner(replace(CONFIG, quality_window=150))
    first, last = None, None
    for begin in range(0, 1800, 30):
        report = learner.learn_many(make_events(begin, begin + 30))
        assert report.step is not None
        assert report.step.num_nonfinite == 0
        first, last = first or report.step, report.step
    assert first is not None
    assert last is not None
    assert last.dense_loss < 0.7 * first.dense_loss
    assert last.code_loss < 0.7 * first.code_loss
    whole = learner.quality.segments()[0]
    assert whole.segment == "all"
    assert whole.recall_at_10 > 0.8 > whole.popularity_recall_at_10
    assert learner.quality.hierarchical_recall()[0] >= learner.quality.hierarchical_recall()[-1] > 0.5
    assert len(learner.quality.curve()) > 3


@pytest.mark.parametrize("action", [SKIP, IMPRESSION])
def test_what_is_no_wish_moves_no_weight_and_no_history(action: int) -> None:
    learner, other = make_learner(), make_learner()
    for one in (learner, other):
        one.learn_many(make_events(0, 12))
    passive = make_events(12, 72)
    passive.action_N[:] = action
    report = learner.learn_many(passive)
    assert (report.num_learned, report.num_scored, report.step) == (60, 0, None)
    assert same_weights(learner, other)
    assert learner.recommend_many(["nobody"], 10, 10**12)[0].row_K.tolist() == (
        other.recommend_many(["nobody"], 10, 10**12)[0].row_K.tolist()
    )
    user = hash_id("u1")
    assert (
        learner.memory.histories.get(user).item_T.tolist() == other.memory.histories.get(user).item_T.tolist()
    )
    assert len(learner.memory.aversions.get(user)) == (5 if action == SKIP else 0)
    assert learner.learn_many(passive).num_duplicates == 60


def test_what_a_user_turned_down_is_not_answered_and_its_like_falls() -> None:
    learner = make_learner()
    learner.observe_many(make_events(0, 120))
    before = learner.recommend_many(["u1"], 20, 10**12)[0].row_K
    turned_down = make_events(121, 122)
    turned_down = replace(turned_down, item_N=before[:1], action_N=np.array([SKIP]))
    learner.learn_many(turned_down)
    after = learner.recommend_many(["u1"], 20, 10**12)[0].row_K
    assert before[0] not in after
    content_NE = learner.catalogue.content_NE.numpy()
    likest = before[1:][(content_NE[before[1:]] @ content_NE[before[0]]).argmax()]
    place = {row: n for n, row in enumerate(after.tolist())}
    assert place.get(int(likest), 20) > before.tolist().index(likest) - 1


def test_event_ids_are_those_of_a_user() -> None:
    learner = make_learner()
    events = make_events(0, 24)
    numbered = replace(events, event_ids=[str(n // NUM_USERS) for n in range(24)])
    assert learner.learn_many(numbered).num_learned == 24
    assert learner.learn_many(numbered).num_duplicates == 24


def test_non_finite_step_is_dropped_and_counted() -> None:
    learner = make_learner()
    learner.learn_many(make_events(0, 24))
    with torch.no_grad():
        learner.recommender.dense_state.bias.fill_(torch.inf)
    weights = {name: tensor.clone() for name, tensor in learner.recommender.trunk.state_dict().items()}
    report = learner.learn_many(make_events(24, 48))
    assert report.step is not None
    assert report.step.num_nonfinite >= 1
    assert report.num_learned == 24
    after = learner.recommender.trunk.state_dict()
    drift = LearnerConfig().anchor_strength
    assert all((after[name] - weights[name]).abs().max() <= drift for name in weights)


def test_answers_leave_out_what_the_user_had_and_include_new_items() -> None:
    learner = make_learner(replace(CONFIG, max_seen_events=100))
    for begin in range(0, 120, 24):
        learner.learn_many(make_events(begin, begin + 24))
    content_E = functional.normalize(torch.ones(8), dim=0)
    codes = learner.catalogue.assign(content_E)
    now = 10**12 + 10**8
    row = learner.catalogue.insert("brand-new", codes, content_E, announced_ms=now)
    for user, answer in enumerate(learner.recommend_many([f"u{n}" for n in range(NUM_USERS)], 30, now)):
        seen = {(user * 3 + step) % NUM_ITEMS for step in range(10)}
        assert len(set(answer.row_K.tolist())) == len(answer.row_K) == 30
        assert not seen & set(answer.row_K.tolist())
        assert row in learner.recommend_many([f"u{user}"], 31, now)[0].row_K
    assert learner.catalogue.insert("brand-new", codes, -content_E, available=False) == row
    learner.put_items([row])
    assert row not in learner.recommend_many(["u1"], 31, now)[0].row_K


def test_an_unknown_row_is_refused_before_anything_changed() -> None:
    learner = make_learner()
    events = make_events(0, 5)
    events.item_N[2] = NUM_ITEMS
    with pytest.raises(ValueError, match="not in the catalogue"):
        learner.learn_many(events)
    assert learner.num_learned == 0
    assert learner.learn_many(make_events(0, 5)).num_learned == 5


def test_release_is_a_copy_and_can_come_back() -> None:
    learner = make_learner()
    for begin in range(0, 96, 24):
        learner.learn_many(make_events(begin, begin + 24))
    bundle = learner.release_bundle(
        "r1", parent_release_id="", created_time_ms=1, offsets={"interactions/0": 96}
    )
    learner.set_live(bundle)
    frozen = {name: tensor.clone() for name, tensor in bundle.recommender.state_dict().items()}
    assert bundle.meta.metrics["num_scored"] > 0
    for begin in range(96, 400, 24):
        learner.learn_many(make_events(begin, begin + 24))
    learner.catalogue.insert("later", learner.catalogue.assign(torch.ones(8)), torch.ones(8))
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in bundle.recommender.state_dict().items())
    assert bundle.statistics.num_events == 90  # the wishes among 96
    assert len(bundle.catalogue) == NUM_ITEMS
    learner.restore_weights(bundle)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in learner.recommender.state_dict().items())
    assert learner.num_learned > 300


def test_a_batch_whose_step_failed_is_learned_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    learner, events = make_learner(), make_events(0, 24)
    with monkeypatch.context() as patch:
        patch.setattr(learner.trainer, "step", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            learner.learn_many(events)
    assert learner.num_learned == 0
    report = learner.learn_many(events)
    assert (report.num_learned, report.num_duplicates) == (24, 0)
    assert report.step is not None
    other = make_learner()
    other.learn_many(events)
    rows = np.arange(NUM_ITEMS)
    assert learner.statistics.totals(rows).tolist() == other.statistics.totals(rows).tolist()


def test_release_of_another_architecture_is_no_kin() -> None:
    learner, other = make_learner(), make_learner()
    bundle = other.release_bundle("r1", parent_release_id="", created_time_ms=1, offsets={})
    assert learner.is_kin(bundle)
    bundle.recommender.config = replace(bundle.recommender.config, num_layers=7)
    assert not learner.is_kin(bundle)
    with pytest.raises(IncompatibleCheckpoint, match="architecture"):
        learner.restore_weights(bundle)


def test_release_of_another_codebook_is_refused() -> None:
    learner, other = make_learner(), make_learner()
    bundle = other.release_bundle("r1", parent_release_id="", created_time_ms=1, offsets={})
    bundle.catalogue.codebook = fit_codebook(
        torch.randn(30, 8), CodebookConfig(num_levels=2, codebook_size=8)
    )
    with pytest.raises(IncompatibleCheckpoint, match="codebook"):
        learner.set_live(bundle)


def test_a_worse_model_does_not_pass_the_gate() -> None:
    learner = make_learner(replace(CONFIG, score_every=1, gate_every=1))
    for begin in range(0, 1200, 24):
        learner.learn_many(make_events(begin, begin + 24))
    assert learner.gate().passed
    good = learner.release_bundle("r1", parent_release_id="", created_time_ms=1, offsets={})
    learner.set_live(good)
    with torch.no_grad():  # what learning on shuffled labels would do, at once
        for parameter in (*learner.recommender.parameters(), *learner.ranker.parameters()):
            parameter.copy_(torch.randn(parameter.shape) * parameter.abs().mean())
    for begin in range(1200, 1440, 24):
        learner.learn_many(make_events(begin, begin + 24))
    verdict = learner.gate()
    assert not verdict.passed
    assert verdict.difference < 0


def test_observed_events_count_but_do_not_train() -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.recommender.state_dict().items()}
    assert learner.observe_many(make_events(0, 60)).num_learned == 60
    assert learner.learn_many(make_events(0, 60)).num_duplicates == 60
    assert learner.statistics.num_events == 56  # the wishes
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.recommender.state_dict().items())


def test_another_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint):
        OnlineLearner.load(tmp_path / "nothing")


def test_items_that_were_learned_from_get_a_vector_of_their_own() -> None:
    learner = make_learner()
    assert len(learner.recommender.identities) == 0
    events = make_events(0, 12)
    learner.learn_many(events)
    with torch.no_grad():
        own_ND = learner.recommender.identities(learner.catalogue.codes_NC)
    with_own = set((own_ND.abs().sum(1) > 0).nonzero()[:, 0].tolist())
    assert len(with_own) == len(learner.recommender.identities) > len(events) / 2
    assert with_own <= set(events.item_N.tolist())
