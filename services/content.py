"""What an item is known by before anybody acted on it: one content vector each, all of one width.

Where at least half of the items bring vectors of their own, those are taken. An item without one then gets
the mean of its neighbours' in the users' histories; one without such neighbours is left out, and counted.
Where fewer bring one, the texts of all are embedded: vectors of two origins have no common space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.text import TextEmbedder, item_text
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from services.errors import ServiceError

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""`progress(stage, number done, number in all, figures)`."""

_FloatArray = npt.NDArray[np.float32]


class UnusableContent(ServiceError):
    """The items' vectors cannot be used together; the text names them."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """`content_NE` float32, L2-normalised; `kept` are the places of its N items among those given."""

    content_NE: Tensor
    kept: list[int]
    notes: list[str]


def item_content(items: Sequence[Item], events: Sequence[Event], progress: Progress) -> Content:
    """The content of each item; `events` in the order of each user. Raises UnusableContent."""
    own = own_vectors(items)
    missing = [n for n, vector in enumerate(own) if vector is None]
    if not items or 2 * len(missing) > len(items):
        notes = []
        if len(missing) < len(items):
            num_own = len(items) - len(missing)
            notes = [
                f"{num_own:,} of {len(items):,} items bring a vector: the texts of all are embedded instead"
            ]
        return Content(content_NE=_embedded(items, progress), kept=list(range(len(items))), notes=notes)
    found, notes = dict(enumerate(own)), []
    if missing:
        found |= _neighbours_mean(items, own, events)
        left_out = [items[n].item_id for n in missing if found[n] is None]
        notes.append(
            f"{len(missing):,} of {len(items):,} items have no vector of their own (such as "
            f"{items[missing[0]].item_id!r}): {len(missing) - len(left_out):,} take their neighbours' mean, "
            f"{len(left_out):,} are left out"
        )
    kept = [n for n in range(len(items)) if found[n] is not None]
    stacked_NE = torch.from_numpy(np.stack([vector for n in kept if (vector := found[n]) is not None]))
    return Content(content_NE=functional.normalize(stacked_NE, dim=1), kept=kept, notes=notes)


def own_vectors(items: Sequence[Item]) -> list[_FloatArray | None]:
    """Each item's own vector (`text` first), None without one or with zeros only, which say nothing.

    Raises UnusableContent for numbers that are not finite and for vectors of several widths.
    """
    vectors: list[_FloatArray | None] = []
    example: dict[int, str] = {}
    count: dict[int, int] = {}
    for item in items:
        vector = _own_vector(item)
        if vector is not None:
            if not np.isfinite(vector).all():
                raise UnusableContent(f"the vector of item {item.item_id!r} has values that are not finite")
            example.setdefault(len(vector), item.item_id)
            count[len(vector)] = count.get(len(vector), 0) + 1
        vectors.append(vector if vector is not None and vector.any() else None)
    if len(count) > 1:
        widths = ", ".join(f"{count[w]:,} of {w} numbers (such as {example[w]!r})" for w in sorted(count))
        raise UnusableContent(f"the items' vectors must all have one width; there are {widths}")
    return vectors


def _own_vector(item: Item) -> _FloatArray | None:
    embeddings = sorted(item.embeddings, key=lambda embedding: embedding.modality != "text")
    return np.asarray(embeddings[0].values, dtype=np.float32) if embeddings else None


def _embedded(items: Sequence[Item], progress: Progress) -> Tensor:
    texts = [item_text(item.title, item.brand, item.categories) for item in items]
    return TextEmbedder().embed_many(texts, lambda done, total: progress("embed items", done, total, {}))


def _neighbours_mean(
    items: Sequence[Item], own: Sequence[_FloatArray | None], events: Sequence[Event]
) -> dict[int, _FloatArray | None]:
    """For each item without a vector: the mean of those right before and after it in the users' histories."""
    place = {item.item_id: n for n, item in enumerate(items)}
    sums: dict[int, _FloatArray | None] = {n: None for n, vector in enumerate(own) if vector is None}
    last: dict[str, int] = {}
    for event in events:
        here = place.get(event.item_id)
        if here is None:
            continue
        before = last.get(event.user_id)
        last[event.user_id] = here
        for one, other in ((before, here), (here, before)):
            if one is None or other is None or one not in sums or (vector := own[other]) is None:
                continue
            unit = vector / np.linalg.norm(vector)
            total = sums[one]
            sums[one] = unit if total is None else total + unit
    return sums
