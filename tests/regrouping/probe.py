"""`python probe.py TREE`: what a tree computes from a fixed seed, as JSON, to be compared between commits.

Everything is found by its name, wherever it stands in the tree, so that the same probe runs before and after
a regrouping. Trains a small recommender and its ranker, learns online with live inserts and a replay, writes
a release and a checkpoint, and asks the services that release. Floats are written to the last bit.
"""

import ast
import hashlib
import importlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

PACKAGES = ("models", "services", "streaming")
# What a name is called in other commits.
OTHER_NAMES: dict[str, tuple[str, ...]] = {}
TIME_MS = 1_700_000_000_000
NUM_USERS, NUM_ITEMS, NUM_NEW_ITEMS, NUM_EVENTS = 60, 120, 12, 1_200
CONTENT_DIM = 16
BATCH = 64

Finder = Callable[[str], Any]


def finder(tree: Path) -> Finder:
    """A function that gives a class or function of the tree by its name."""
    module_of: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*.py")):
            module = ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    module_of.setdefault(f"{package}.{node.name}", module)
                    module_of.setdefault(node.name, module)

    def find(name: str) -> Any:
        package, _, short = name.rpartition(".")
        for candidate in (short, *OTHER_NAMES.get(short, ())):
            module = module_of.get(f"{package}.{candidate}" if package else candidate)
            if module is not None:
                return getattr(importlib.import_module(module), candidate)
        raise LookupError(f"{tree} defines no {name}: add its other name to OTHER_NAMES")

    return find


def probe(tree: Path, trunk: str) -> dict[str, Any]:
    """The figures of one trunk; each value is plain JSON."""
    find = finder(tree)
    world = World(find, trunk)
    found = {"loss curve": world.train(), "ranker": world.fit_ranker()}
    with tempfile.TemporaryDirectory() as folder:
        found |= world.learn(Path(folder))
        found |= world.serve(Path(folder) / "releases" / "r1")
    return found


class World:
    """A catalogue, a stream of events, and what is made of them."""

    def __init__(self, find: Finder, trunk: str) -> None:
        self.find = find
        self.random = np.random.default_rng(7)
        content_NE = self._content(NUM_ITEMS)
        codebook = find("fit_codebook")(
            content_NE, find("CodebookConfig")(num_levels=2, codebook_size=8, num_iterations=5)
        )
        self.catalogue = find("CatalogueIndex")(codebook)
        ids = [f"item-{n}" for n in range(NUM_ITEMS)]
        self.catalogue.add_many(ids, content_NE, np.full(NUM_ITEMS, TIME_MS, dtype=np.int64))
        self.model = find("ModelConfig")(
            content_dim=CONTENT_DIM, num_levels=2, codebook_size=8, d_model=32, num_layers=2, num_heads=2,
            max_history=20, ranker_dim=16, trunk=trunk,
        )  # fmt: skip
        self.search = find("SearchConfig")(beam=12, num_dense=12)
        self.statistics = find("StatisticsConfig")()
        self.events = self._events(NUM_EVENTS, NUM_ITEMS)
        split = NUM_EVENTS * 2 // 3
        self.past = self.events.select(np.arange(split))
        self.held_out = self.events.select(np.arange(split, NUM_EVENTS))

    def _content(self, num_items: int) -> torch.Tensor:
        vectors = self.random.normal(size=(num_items, CONTENT_DIM)).astype(np.float32)
        return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def _events(self, num_events: int, num_items: int, begin: int = 0) -> Any:
        item_N = np.minimum(self.random.geometric(0.03, num_events) - 1, num_items - 1)
        return self.find("EventBatch")(
            event_ids=[f"e{begin + n}" for n in range(num_events)],
            user_ids=[f"u{user}" for user in self.random.integers(NUM_USERS, size=num_events)],
            item_N=item_N.astype(np.int64),
            action_N=self.random.choice([1, 2, 3, 5, 6, 7], num_events).astype(np.int64),
            time_ms_N=TIME_MS + (begin + np.arange(num_events, dtype=np.int64)) * 60_000,
            value_N=np.full(num_events, 5.0),
        )

    def train(self) -> list[str]:
        """The training losses and validation figures, step by step."""
        curve: list[str] = []

        def progress(stage: str, done: int, total: int, figures: dict[str, float] | None = None) -> None:
            curve.append(f"{stage.split()[0]} {done}/{total} {_floats(figures or {})}")

        train = self.find("TrainConfig")(max_epochs=2, batch_positions=256)
        self.recommender = self.find("train_recommender")(
            self.catalogue, self.past, self.model, train, validation=self.held_out, progress=progress
        )
        return curve

    def fit_ranker(self) -> dict[str, str]:
        """What the fitted ranker reached."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            num_features = len(self.find("feature_names")(self.statistics))
            self.ranker = self.find("Ranker")(self.recommender.config, num_features)
        statistics = self.find("LiveStatistics")(self.statistics)
        pipeline = self.find("Pipeline").build(
            self.recommender, self.ranker, self.catalogue, statistics, self.search
        )
        wishes = self.held_out.select(self.held_out.is_wish_N)
        asked = itertools.count()  # ends the fitting after some rounds, always the same
        figures = self.find("fit_ranker")(
            pipeline,
            self.past,
            wishes,
            stream=self.events,
            seed=0,
            time_share=lambda: float(next(asked) > 7),
        )
        return _floats(figures)

    def learn(self, folder: Path) -> dict[str, Any]:
        """Online steps with items that are announced in between, a replay, a release and a checkpoint."""
        find = self.find
        learner = find("OnlineLearner")(
            self.recommender,
            self.ranker,
            self.catalogue,
            find("LiveStatistics")(self.statistics),
            find("LearnerConfig")(quality_window=200, reservoir_size=50),
            self.search,
        )
        learner.observe_many(self.past)
        self.bundle_before = learner.release_bundle(
            "r0", parent_release_id="", created_time_ms=TIME_MS, offsets={}
        )
        steps = [self._step(learner, batch) for batch in _batches(self.held_out)]
        self.sids = self._tokenize()
        for sid in self.sids:
            content_E = find("content_of")(sid)
            self.catalogue.insert(
                sid.item_id, tuple(sid.sid.codes), content_E, announced_ms=sid.announced_time_ms
            )
        new = self._events(4 * BATCH, NUM_ITEMS + NUM_NEW_ITEMS, begin=NUM_EVENTS)
        steps += [self._step(learner, batch) for batch in _batches(new)]
        # a replay: known events change nothing
        steps += [self._step(learner, batch) for batch in _batches(self.held_out.select(np.arange(BATCH)))]
        bundle = learner.release_bundle(
            "r1", parent_release_id="r0", created_time_ms=TIME_MS, offsets={"interactions/0": 9}
        )
        find("save_release")(folder / "releases", bundle)
        learner.save(folder / "checkpoint", offsets={"interactions/0": 9}, extra={})
        loaded, _, _ = find("OnlineLearner").load(folder / "checkpoint")
        more = self._events(BATCH, NUM_ITEMS + NUM_NEW_ITEMS, begin=2 * NUM_EVENTS)
        after = [self._step(one, more) for one in (learner, loaded)]
        users = [f"u{n}" for n in range(NUM_USERS)]
        answers = learner.recommend_many(users, 10, TIME_MS + 10**9)
        return {
            "online steps": steps,
            "a step after a restart": after,
            "release": _digests(folder / "releases" / "r1"),
            "checkpoint": _digests(folder / "checkpoint"),
            "the learner's answers": [
                [answer.row_K.tolist(), [float(x).hex() for x in answer.score_K]] for answer in answers
            ],
        }

    def serve(self, directory: Path) -> dict[str, Any]:
        """What generator and ranker answer, before and after live inserts and events that come twice."""
        from protos.headrace.v1.events_pb2 import Event, HistoryEvent
        from protos.headrace.v1.generator_pb2 import GenerateRequest
        from protos.headrace.v1.ranker_pb2 import RankRequest

        find, load = self.find, self.find("load_release")
        meaning = find("EventMeaning")()
        generator = find("GeneratorServing")(self.search, meaning, max_kept_users=20)
        ranker = find("RankerServing")(1_000, search=self.search, meaning=meaning)
        events = [
            Event(
                event_id=f"live-{n}",
                user_id=f"u{n % 10}",
                item_id=f"item-{(n * 7) % (NUM_ITEMS + NUM_NEW_ITEMS)}",
                action=2 if n % 5 else 6,
                event_time_ms=TIME_MS + 10**9 + n,
            )
            for n in range(80)
        ]
        key_of = find("user_key")
        size = "k" if "k" in GenerateRequest.DESCRIPTOR.fields_by_name else "num_candidates"

        def ask() -> list[str]:
            answers = []
            for u in range(10):
                history = [
                    HistoryEvent(item_id=one.item_id, action=one.action, event_time_ms=one.event_time_ms)
                    for one in events
                    if one.user_id == f"u{u}"
                ]
                generated = generator.generate_many(
                    [GenerateRequest(history=history, user_key=key_of(f"u{u}"), **{size: 10})]
                )[0]
                ranked = ranker.rank_many(
                    [
                        RankRequest(
                            history=history,
                            candidates=generated.candidates,
                            request_time_ms=TIME_MS + 2 * 10**9,
                            release_id=generated.release_id,
                            user_state=generated.user_state,
                            explain_item_id="item-3",
                        )
                    ]
                )[0]
                answers += [_message_digest(generated), _message_digest(ranked)]
            return answers

        host = find("ModelHost")(generator, ranker)
        host.swap(host.load(load(directory)))
        before = ask()
        host.put_items(self._tokenize(first=NUM_NEW_ITEMS), is_live=False)
        for _ in range(2):
            host.put_events(events)
        return {"answers": before, "answers after inserts and events": ask()}

    def _tokenize(self, first: int = 0) -> list[Any]:
        """The semantic IDs that the tokenizer gives to new items."""
        from protos.headrace.v1.items_pb2 import Embedding, Item

        find = self.find
        serving = find("TokenizerServing")(find("ContentEmbedder")())
        serving.swap("r0", TIME_MS, serving.load(self.bundle_before))
        content_NE = self._content(NUM_NEW_ITEMS)
        records = [
            find("streaming.Record")(
                topic="items",
                partition=0,
                offset=n,
                key=f"item-{NUM_ITEMS + first + n}",
                timestamp_ms=TIME_MS + 10**8,
                message=Item(
                    item_id=f"item-{NUM_ITEMS + first + n}",
                    embeddings=[Embedding(modality="text", values=content_NE[n].tolist())],
                ),
                origin=None,
            )
            for n in range(NUM_NEW_ITEMS)
        ]
        return list(serving.tokenize(records).sids)

    def _step(self, learner: Any, batch: Any) -> str:
        report = learner.learn_many(batch)
        step = None if report.step is None else _floats(vars(report.step))
        return f"{report.num_learned} learned, {report.num_scored} scored, {step}"


def _batches(events: Any) -> list[Any]:
    bounds: Sequence[int] = range(0, len(events), BATCH)
    return [events.select(np.arange(begin, min(begin + BATCH, len(events)))) for begin in bounds]


def _floats(figures: dict[str, Any]) -> dict[str, str]:
    return {name: float(value).hex() for name, value in sorted(figures.items())}


def _message_digest(message: Any) -> str:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()[:16]


def _digests(directory: Path) -> dict[str, str]:
    """The sha256 of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(root))
    json.dump({trunk: probe(root, trunk) for trunk in ("softmax", "hstu")}, sys.stdout)
