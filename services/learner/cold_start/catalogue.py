"""The catalogue that a training begins with: the items that have content, with codes of a codebook fitted to
them.

Knows neither events' order nor networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from models.catalogue.index import CatalogueIndex
from models.networks.config import ModelConfig
from models.progress import Progress
from models.tokenizers.rq_kmeans import fit_codebook
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from services.errors import ServiceError
from services.learner.cold_start.content import Content, item_content
from services.settings import Settings


class NothingToLearn(ServiceError):
    """There are too few events or items for a first release."""


def prepare_catalogue(
    settings: Settings,
    items: Sequence[Item],
    progress: Progress,
    *,
    say: Callable[[str], None] = lambda note: None,
) -> tuple[CatalogueIndex, ModelConfig]:
    """A catalogue with a codebook fitted to the items, and the model's config for it; `say` gets notes."""
    catalogue, notes = catalogue_of(settings, items, (), progress)
    for note in notes:
        say(note)
    return catalogue, fitted_config(settings, catalogue)


def fitted_config(settings: Settings, catalogue: CatalogueIndex) -> ModelConfig:
    """The model's config with the sizes that the codebook decides."""
    codebook = catalogue.codebook
    return replace(
        settings.model,
        content_dim=codebook.content_dim,
        num_levels=codebook.num_levels,
        codebook_size=codebook.codebook_size,
    )


def catalogue_of(
    settings: Settings, items: Sequence[Item], events: Sequence[Event], progress: Progress
) -> tuple[CatalogueIndex, list[str]]:
    """The catalogue of all items that have content, and what is to be said of the others."""
    if not items:
        raise NothingToLearn(
            "there are no items to learn a codebook from (`headrace replay --data DIR` announces them)"
        )
    content = item_content(items, events, progress)
    kept = [items[n] for n in content.kept]
    catalogue = _fit_catalogue(settings, kept, content, progress)
    return catalogue, content.notes + _crowding(catalogue)


def _crowding(catalogue: CatalogueIndex) -> list[str]:
    """A line where more items are alike than one semantic prefix holds."""
    described_NL = catalogue.codebook.encode(catalogue.content_NE)
    num_moved = int((catalogue.codes_NC[:, :-1] != described_NL).any(dim=1).sum())
    if not num_moved:
        return []
    return [
        f"{num_moved:,} of {len(catalogue):,} items have a semantic ID that says another content: more are "
        f"alike than the {catalogue.num_disambiguation} that one prefix holds (titles or vectors that tell "
        "them apart help, or a larger HEADRACE_CODEBOOK__CODEBOOK_SIZE)"
    ]


def _fit_catalogue(
    settings: Settings, items: Sequence[Item], content: Content, progress: Progress
) -> CatalogueIndex:
    config = settings.codebook
    room = config.codebook_size ** (config.num_levels + 1)
    if len(items) > room:
        raise NothingToLearn(
            f"{len(items):,} items are more than the {room:,} that {config.num_levels} levels of "
            f"{config.codebook_size} codes can name: raise HEADRACE_CODEBOOK__CODEBOOK_SIZE"
        )
    codebook = fit_codebook(content.content_NE, settings.codebook, progress)
    catalogue = CatalogueIndex(codebook, modality=content.modality)
    announced_ms_N = np.array([item.announced_time_ms for item in items], dtype=np.int64)
    catalogue.add_many([item.item_id for item in items], content.content_NE, announced_ms_N)
    for row, item in enumerate(items):
        if item.unavailable:
            catalogue.set_available(row, False)
    return catalogue
