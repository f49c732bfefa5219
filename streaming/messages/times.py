"""The one rule for times: what is one, in which unit, and what counts as now.

On the wire a time is milliseconds since the Unix epoch. Seconds, microseconds or nanoseconds in their place
would be 1970 or the far future: they are recognised by their size and refused by name, never taken.
"""

EARLIEST_MS = 631_152_000_000
"""1 January 1990: older than any log of what people chose on a screen."""

LATEST_MS = 4_102_444_800_000
"""1 January 2100: no log is later. Units are a factor of a thousand apart, so none is taken for another."""

MAX_CLOCK_SKEW_MS = 86_400_000
"""How far a producer's clock may be ahead of ours; a time in the future counts as now."""

_UNITS = {"seconds": 1_000.0, "microseconds": 1e-3, "nanoseconds": 1e-6}


def time_problem(time_ms: int, now_ms: int | None) -> str | None:
    """What is wrong with the time of an event, or None.

    `now_ms` is when it was sent or received; without it the future is not judged.
    """
    latest_ms = None if now_ms is None else now_ms + MAX_CLOCK_SKEW_MS
    if time_ms >= EARLIEST_MS and (latest_ms is None or time_ms <= latest_ms):
        return None
    if latest_ms is not None:
        for unit, milliseconds in _UNITS.items():
            if EARLIEST_MS <= time_ms * milliseconds <= latest_ms:
                return f"looks like {unit} since 1970: it must be milliseconds"
    if time_ms < EARLIEST_MS:
        return "must be milliseconds since 1970, and not before 1990"
    return "is more than a day in the future"


def record_now_ms(timestamp_ms: int, clock_ms: int) -> int:
    """The time against which an event's own time is judged: when it was sent, but not after now.

    The sending time makes the judgement the same whenever the record is read again. A timestamp that cannot
    be one (none, another unit) says nothing: then it is `clock_ms`.
    """
    return min(timestamp_ms, clock_ms) if timestamp_ms >= EARLIEST_MS else clock_ms
