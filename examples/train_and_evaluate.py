"""Trains and evaluates through the library, without a service: some twenty seconds on one core.

    python examples/train_and_evaluate.py [DIR]

DIR is a data folder with vectors. Without it, a small one is made: users walk through the items of one theme
in a circle, with a jump to anywhere now and then. The protocol is that of `headrace evaluate`: each user's
last event is the test.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.evaluation.leave_one_out import evaluate_leave_one_out
from models.networks.config import ModelConfig
from models.ranking.config import StatisticsConfig
from models.tokenizers.config import CodebookConfig
from models.tokenizers.content import unit_vectors
from models.tokenizers.rq_kmeans import fit_codebook
from models.training.config import TrainConfig
from services.wire.translate import event_batch
from streaming.datasets.folder import Dataset, load_dataset
from streaming.messages.meaning import EventMeaning

NUM_USERS, NUM_ITEMS, NUM_THEMES, NUM_STEPS, WIDTH = 300, 120, 6, 12, 16


def write_folder(place: Path) -> None:
    """interactions.csv, items.jsonl, and one vector for each line of items in title_emb.npy."""
    random = np.random.default_rng(0)
    theme_N = np.arange(NUM_ITEMS) % NUM_THEMES
    vectors = random.normal(size=(NUM_THEMES, WIDTH))[theme_N] + 0.4 * random.normal(size=(NUM_ITEMS, WIDTH))
    np.save(place / "title_emb.npy", vectors.astype(np.float32))
    lines = [json.dumps({"item_id": f"item-{n}", "title": f"Item {n}"}) for n in range(NUM_ITEMS)]
    (place / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (place / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp", "action"])
        for user in range(NUM_USERS):
            item = int(random.integers(NUM_ITEMS))
            for step in range(NUM_STEPS):
                rows.writerow([f"user-{user}", f"item-{item}", 1_760_000_000 + 60 * step, "click"])
                is_jump = random.random() < 0.1
                item = int(random.integers(NUM_ITEMS)) if is_jump else (item + NUM_THEMES) % NUM_ITEMS


def make_catalogue(dataset: Dataset, config: CodebookConfig) -> CatalogueIndex:
    """Every item with its semantic ID, by a codebook fitted to the items' own vectors."""
    bare = [item.item_id for item in dataset.items if not item.embeddings]
    if bare:
        sys.exit(
            f"{len(bare):,} of {len(dataset.items):,} items bring no vector, such as {bare[0]!r}: add "
            "title_emb.npy to the folder (docs/api.md), or run `headrace evaluate`, which embeds texts"
        )
    content_NE = unit_vectors(torch.tensor([list(item.embeddings[0].values) for item in dataset.items]))
    catalogue = CatalogueIndex(fit_codebook(content_NE, config))
    item_ids = [item.item_id for item in dataset.items]
    catalogue.add_many(item_ids, content_NE, np.zeros(len(item_ids), dtype=np.int64))
    return catalogue


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dataset = load_dataset(folder)
    codebook = CodebookConfig(num_levels=2, codebook_size=16)
    catalogue = make_catalogue(dataset, codebook)
    events = [dataset.event(n) for n in range(len(dataset))]
    model = ModelConfig(
        content_dim=catalogue.codebook.content_dim,
        num_levels=codebook.num_levels,
        codebook_size=codebook.codebook_size,
        d_model=64,
        num_layers=1,
        max_history=20,
        ranker_dim=32,
    )
    report = evaluate_leave_one_out(
        catalogue,
        event_batch(events, catalogue.rows([event.item_id for event in events]), EventMeaning()),
        model=model,
        train=TrainConfig(max_epochs=5, learning_rate=3e-3, batch_positions=512),
        search=SearchConfig(beam=20, num_dense=20),
        statistics=StatisticsConfig(),
    )
    systems = {"whole path": report.recommend, "beam alone": report.generator, "dense head": report.dense}
    for name, figures in systems.items():
        print(f"{name:<12}", {key: round(value, 3) for key, value in figures.items()})
    print(f"{report.num_cases} test events, {60 * report.train_minutes:.0f} s to train")


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(Path(scratch))
            main(Path(scratch))
