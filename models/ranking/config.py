"""The settings of the live statistics."""

from dataclasses import dataclass

from models.checks import require


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Live statistics: decayed counts per half-life and co-occurrence with the last items.

    `trending_half_life` is a position in `half_lives_s`. An item keeps `max_neighbours` ties; an item
    `n` events before the newest weighs `recency_decay ** n`, and a tie from the later to the earlier
    item `backward_weight` of the forward one. The `max_users` users with the newest events are known.
    An item counts once for each user in a window of `count_window_s`; the newest `max_counted` such counts
    are remembered.
    """

    half_lives_s: tuple[float, ...] = (3_600.0, 86_400.0, 604_800.0, 2_592_000.0)
    trending_half_life: int = 2
    num_recent_items: int = 5
    max_neighbours: int = 64
    recency_decay: float = 0.8
    backward_weight: float = 0.5
    cooccurrence_half_life_s: float = 7_776_000.0
    max_users: int = 1_000_000
    count_window_s: float = 86_400.0
    max_counted: int = 200_000

    def __post_init__(self) -> None:
        require(len(self.half_lives_s) > 0, "there must be a half-life")
        require(all(h > 0 for h in self.half_lives_s), "half-lives must be positive")
        require(self.cooccurrence_half_life_s > 0, "half-lives must be positive")
        require(
            0 <= self.trending_half_life < len(self.half_lives_s),
            "trending_half_life must be a position in half_lives_s",
        )
        require(self.num_recent_items >= 1, "num_recent_items must be at least 1")
        require(self.max_neighbours >= self.num_recent_items, "max_neighbours must hold the recent items")
        require(0 < self.recency_decay <= 1, "recency_decay must be in (0, 1]")
        require(self.max_users >= 1, "max_users must be at least 1")
        require(self.count_window_s > 0, "count_window_s must be positive")
        require(self.max_counted >= 1, "max_counted must be at least 1")
