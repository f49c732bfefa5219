"""Brings vectors of its own instead of texts: a data folder to train on, and later an item with its vector.

    python examples/own_embeddings.py write DIR            # interactions.csv, items.jsonl, title_emb.npy
    headrace up                                            # in another shell
    headrace replay --data DIR --from 0
    headrace train --from-topic --max-minutes 2
    python examples/own_embeddings.py announce [HOST:PORT]

All vectors have one width, here 32, which is then that of the codebook: an item that is announced later with
a vector of another width is refused. Put your encoder in the place of `vector_of`.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

NUM_USERS, NUM_ITEMS, NUM_THEMES, WIDTH = 100, 120, 6, 32
LAST_S = 1_760_000_000
CENTRES = np.random.default_rng(0).normal(size=(NUM_THEMES, WIDTH))


def vector_of(n: int) -> np.ndarray:
    """The vector of the n-th item: near the centre of its theme."""
    own = np.random.default_rng(n + 1).normal(size=WIDTH)
    return (CENTRES[n % NUM_THEMES] + 0.3 * own).astype(np.float32)


def write(folder: str) -> None:
    """A data folder: row n of title_emb.npy belongs to line n of items.jsonl. Titles may be missing."""
    place, random = Path(folder), np.random.default_rng(0)
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "title_emb.npy", np.stack([vector_of(n) for n in range(NUM_ITEMS)]))
    lines = [json.dumps({"item_id": f"item-{n}", "title": f"Item {n}"}) for n in range(NUM_ITEMS)]
    (place / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (place / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp", "action"])
        for user in range(NUM_USERS):
            theme = user % NUM_THEMES
            mine = random.permutation(np.arange(theme, NUM_ITEMS, NUM_THEMES))[:10]
            for step, n in enumerate(mine.tolist()):
                rows.writerow([f"user-{user}", f"item-{n}", LAST_S - 3_600 * (10 - step) + user, "click"])
    print(f"{NUM_ITEMS} items with vectors of {WIDTH} numbers, {10 * NUM_USERS} events: {place}")


def announce(address: str = "127.0.0.1:7400") -> None:
    """A new item with its vector, and the answer of somebody who is shown it."""
    import grpc

    from protos.headrace.v1.items_pb2 import Embedding, Item
    from protos.headrace.v1.recommend_pb2 import RecommendRequest, UpsertItemsRequest
    from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub

    embedding = Embedding(modality="text", values=vector_of(NUM_ITEMS).tolist())
    item = Item(item_id=f"item-{NUM_ITEMS}", title="The newest item", embeddings=[embedding])
    with grpc.insecure_channel(address) as channel:
        gateway = RecommenderServiceStub(channel)
        gateway.UpsertItems(UpsertItemsRequest(items=[item]), timeout=5)
        time.sleep(1)  # its semantic ID is given, and inserted into every trie
        answer = gateway.Recommend(RecommendRequest(user_id="user-0", k=10), timeout=5)
        print([found.item_id for found in answer.recommendations], answer.release_id)


if __name__ == "__main__":
    {"write": write, "announce": announce}[sys.argv[1]](*sys.argv[2:])
