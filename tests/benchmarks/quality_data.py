"""The data of the quality benchmark: a folder, a sample of it, or a generated one, as a split.

Owns where the events come from and that a run on anything but the real data says so. Training and scoring
are others'.
"""

import gzip
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import console, data_folder
from torch import Tensor

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.evaluation.leave_one_out import LeaveOneOutSplit, split_leave_one_out
from models.networks.config import ModelConfig
from models.tokenizers.config import CodebookConfig
from protos.headrace.v1.items_pb2 import Embedding
from services.learner.cold_start.catalogue import prepare_catalogue
from services.learner.cold_start.content import item_content
from services.settings import Settings, load_settings
from services.wire.columns import dataset_batch
from streaming.datasets.folder import Dataset, load_dataset

EVENTS_PER_USER = 14
_GENERATED = (600, 400, 16)  # users, items, interests


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One data set under the default settings: its catalogue, its events and their split."""

    dataset: Dataset
    settings: Settings
    catalogue: CatalogueIndex
    model: ModelConfig
    events: EventBatch
    split: LeaveOneOutSplit

    @property
    def name(self) -> str:
        """The folder's name, with "-sample" where only some users are in it."""
        return self.dataset.name

    @property
    def content_NE(self) -> Tensor:
        """The items' vectors, float32 [N, E]."""
        return self.catalogue.content_NE

    def recoded(self, codebook: CodebookConfig) -> tuple[CatalogueIndex, ModelConfig]:
        """The same items under another codebook, and the model's config for it."""
        settings = self.settings.model_copy(update={"codebook": codebook})
        return prepare_catalogue(settings, self.dataset.items, _silent)


def load_problem(name: str, folder: Path | None, *, num_users: int | None) -> Problem:
    """The data set `name` (or the one in `folder`), or `num_users` of its users.

    Without the folder, where a sample is enough, data of the same layout is generated, and that is said; else
    FileNotFoundError says what to do.
    """
    try:
        dataset = load_dataset(folder or data_folder(name))
    except FileNotFoundError as error:
        if num_users is None:
            raise
        console.print(f"[yellow]{error}[/]\n[yellow]The quick run goes on with generated data.[/]")
        with tempfile.TemporaryDirectory() as scratch:
            dataset = load_dataset(generate(Path(scratch) / "generated"))
    if num_users is not None:
        dataset = sample(dataset, num_users)
    return _problem(dataset)


def _problem(dataset: Dataset) -> Problem:
    settings = load_settings()
    if not all(item.embeddings for item in dataset.items):
        console.print(f"{dataset.name}: embedding the text of {len(dataset.items):,} items")
        content = item_content(dataset.items, (), _silent)
        for n, vector_E in zip(content.kept, content.content_NE, strict=True):
            del dataset.items[n].embeddings[:]
            dataset.items[n].embeddings.append(Embedding(modality="text", values=vector_E.tolist()))
    catalogue, model = prepare_catalogue(settings, dataset.items, _silent)
    events = dataset_batch(dataset, catalogue, settings.meaning)
    return Problem(
        dataset=dataset,
        settings=settings,
        catalogue=catalogue,
        model=model,
        events=events,
        split=split_leave_one_out(events),
    )


def sample(dataset: Dataset, num_users: int) -> Dataset:
    """The events of some users drawn at random, and the items in them.

    At most `num_users`, and fewer where they have many events: `EVENTS_PER_USER` for each in all.
    """
    users, user_N = np.unique(dataset.user_id_N.astype(str), return_inverse=True)
    if len(users) <= num_users:
        return dataset
    chosen_U = np.random.default_rng(0).permutation(len(users))[:num_users]
    events_U = np.cumsum(np.bincount(user_N)[chosen_U])
    chosen_U = chosen_U[: max(2, int((events_U <= EVENTS_PER_USER * num_users).sum()))]
    kept_N = np.isin(user_N, chosen_U)
    known = set(dataset.item_id_N[kept_N])
    return replace(
        dataset,
        name=f"{dataset.name}-sample",
        items=[item for item in dataset.items if item.item_id in known],
        user_id_N=dataset.user_id_N[kept_N],
        item_id_N=dataset.item_id_N[kept_N],
        time_ms_N=dataset.time_ms_N[kept_N],
        action_N=dataset.action_N[kept_N],
        value_N=dataset.value_N[kept_N],
        row_N=dataset.row_N[kept_N],
        position_N=None if dataset.position_N is None else dataset.position_N[kept_N],
    )


def generate(folder: Path) -> Path:
    """A data folder of users who stay near one interest; returns it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    num_users, num_items, num_interests = _GENERATED
    interest_I = random.integers(num_interests, size=num_items)
    centre_XE = random.normal(size=(num_interests, 32))
    vector_IE = centre_XE[interest_I] + random.normal(scale=0.5, size=(num_items, 32))
    vector_IE /= np.linalg.norm(vector_IE, axis=1, keepdims=True)
    users, items, times = [], [], []
    for user in range(num_users):
        liked = np.nonzero(interest_I == random.integers(num_interests))[0]
        length = min(int(random.integers(5, 15)), len(liked))
        users += [user] * length
        items += random.choice(liked, length, replace=False).tolist()
        times += (1_600_000_000 + 86_400 * np.sort(random.integers(365, size=length))).tolist()
    pq.write_table(
        pa.table({"user_id": users, "item_id": items, "timestamp": times}), folder / "interactions.parquet"
    )
    np.save(folder / "title_emb.npy", vector_IE.astype(np.float16))
    with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as lines:
        for item in range(num_items):
            line = {"item_id": item, "title": f"Item {item}", "brand": None, "categories": None}
            lines.write(json.dumps(line) + "\n")
    return folder


def user_numbers(events: EventBatch) -> torch.Tensor:
    """A number for each event's user, int64 [N]: 0, 1, ... in the order of the ids."""
    _, number_N = np.unique(np.asarray(events.user_ids, dtype=np.str_), return_inverse=True)
    return torch.from_numpy(number_N.astype(np.int64))


def _silent(stage: str, done: int, total: int, figures: object = None) -> None:
    del stage, done, total, figures
