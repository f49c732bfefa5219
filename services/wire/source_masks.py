"""Sets of candidate sources as one number: the sum of `1 << CandidateSource` over them."""

from functools import cache

from protos.headrace.v1.recommend_pb2 import CandidateSource

SOURCES = tuple(number for number in CandidateSource.values() if number)
EVERY_SOURCE = sum(1 << number for number in SOURCES)


def mask_of(*sources: int) -> int:
    """The mask of distinct sources."""
    return sum(1 << source for source in sources)


@cache
def sources_of(mask: int) -> tuple["CandidateSource.ValueType", ...]:
    """The sources of a mask, by number."""
    return tuple(source for source in SOURCES if mask >> source & 1)
