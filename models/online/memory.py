"""What the learner remembers between two micro-batches, besides weights and live statistics.

Everything here goes into the learner's checkpoint, and nothing that influences learning is elsewhere.
"""

import json
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.measures.quality import PairedHits, PrequentialQuality
from models.measures.windowed_popularity import WindowedPopularity
from models.online.config import LearnerConfig
from models.online.reservoir import Reservoir
from models.sequences.dedupe import DedupeWindow
from models.sequences.histories import UserHistories


@dataclass(kw_only=True)
class Memory:
    """Windows, histories, reservoir, figures, counters and the random numbers' state.

    `histories` are the users' wishes, `aversions` what they turned down.
    """

    dedupe: DedupeWindow
    histories: UserHistories
    aversions: UserHistories
    reservoir: Reservoir
    popularity: WindowedPopularity
    quality: PrequentialQuality
    paired: PairedHits
    random: np.random.Generator
    num_learned: int = 0
    num_wishes: int = 0

    @classmethod
    def blank(cls, config: LearnerConfig, num_codes: int) -> "Memory":
        """The memory of a learner that has seen nothing; items have `num_codes` codes."""
        return cls(
            dedupe=DedupeWindow(config.dedupe_window),
            histories=UserHistories(config.max_seen_events),
            aversions=UserHistories(config.max_seen_events),
            reservoir=Reservoir(config.reservoir_size),
            popularity=WindowedPopularity(config.popularity_window),
            quality=PrequentialQuality(config.quality_window, num_codes),
            paired=PairedHits(config.gate_window),
            random=np.random.Generator(np.random.PCG64(config.seed)),
        )

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, int | str]]:
        """Groups of tensors, each of the dtype its owner names, and counters and random state as JSON."""
        tensors = {
            "dedupe": self.dedupe.state(),
            "histories": self.histories.state(),
            "aversions": self.aversions.state(),
            "reservoir": self.reservoir.state(),
            "popularity": self.popularity.state(),
            "quality": self.quality.state(),
            "paired": self.paired.state(),
        }
        return tensors, {
            "num_learned": self.num_learned,
            "num_wishes": self.num_wishes,
            # 128-bit integers: text, for readers of JSON that know only floats
            "random": json.dumps(self.random.bit_generator.state),
        }

    @classmethod
    def from_state(
        cls,
        config: LearnerConfig,
        num_codes: int,
        tensors: dict[str, dict[str, Tensor]],
        values: dict[str, int | str],
    ) -> "Memory":
        """The memory that `state` described, same dtypes; KeyError or ValueError if something is missing."""
        random = np.random.Generator(np.random.PCG64())
        random.bit_generator.state = json.loads(str(values["random"]))
        return cls(
            dedupe=DedupeWindow.from_state(config.dedupe_window, tensors["dedupe"]),
            histories=UserHistories.from_state(config.max_seen_events, tensors["histories"]),
            aversions=UserHistories.from_state(config.max_seen_events, tensors["aversions"]),
            reservoir=Reservoir.from_state(config.reservoir_size, tensors["reservoir"]),
            popularity=WindowedPopularity.from_state(config.popularity_window, tensors["popularity"]),
            quality=PrequentialQuality.from_state(config.quality_window, num_codes, tensors["quality"]),
            paired=PairedHits.from_state(config.gate_window, tensors["paired"]),
            random=random,
            num_learned=int(values["num_learned"]),
            num_wishes=int(values.get("num_wishes", 0)),
        )
