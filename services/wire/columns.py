"""A data set's events as the columns that models read."""

import numpy as np

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from services.wire.translate import model_action
from streaming.datasets.folder import Dataset
from streaming.messages.meaning import EventMeaning


def dataset_batch(dataset: Dataset, catalogue: CatalogueIndex, meaning: EventMeaning) -> EventBatch:
    """All events of a data set, in stream order."""
    return EventBatch(
        event_ids=[dataset.event_id(n) for n in range(len(dataset))],
        user_ids=dataset.user_id_N.tolist(),
        item_N=catalogue.rows(dataset.item_id_N.tolist()),
        action_N=np.array(
            [
                model_action(int(action), value, meaning)
                for action, value in zip(dataset.action_N, dataset.value_N.tolist(), strict=True)
            ],
            dtype=np.int64,
        ),
        time_ms_N=dataset.time_ms_N,
        value_N=dataset.value_N,
    )
