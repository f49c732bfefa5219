"""Whether a candidate release may replace the live one: a paired test on the same recent events."""

import math
from dataclasses import dataclass

from models.arrays import Float64Array

# Upper end of the one-sided 95% interval: a candidate is refused when even that is below the tolerance.
_Z = 1.645
# How the reason begins where nothing was decided.
GATE_UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """`passed`, the reason for people, the mean paired difference and its standard error."""

    passed: bool
    reason: str
    difference: float
    standard_error: float


def gate(
    candidate_hits: Float64Array, live_hits: Float64Array, tolerance: float, *, min_events: int = 100
) -> GateDecision:
    """Passes a candidate that is not significantly worse than the live release by more than `tolerance`.

    Both arrays (float64 [N]) hold one figure per event (1 for a hit), in the same order. Pairing removes what
    is hard or easy about an event for both: with 1,000 events, 30 won and 20 lost, the difference is +.010
    with a standard error of .007. Fewer than `min_events` decide nothing, and do not pass. Raises ValueError
    when the arrays differ in length.
    """
    if len(candidate_hits) != len(live_hits):
        raise ValueError(f"{len(candidate_hits)} and {len(live_hits)} events are no pairs")
    num_events = len(candidate_hits)
    if num_events < max(2, min_events):
        return GateDecision(
            passed=False,
            reason=f"{GATE_UNDECIDED}: only {num_events} of {min_events} events to compare",
            difference=0.0,
            standard_error=0.0,
        )
    paired_N = candidate_hits - live_hits
    difference = float(paired_N.mean())
    standard_error = float(paired_N.std(ddof=1)) / math.sqrt(num_events)
    passed = difference + _Z * standard_error >= -tolerance
    figures = f"{difference:+.4f} ± {_Z * standard_error:.4f} on {num_events:,} events"
    verdict = "not shown to be worse" if passed else "worse"
    return GateDecision(
        passed=passed,
        reason=f"{verdict} than the live release by more than {tolerance:g}: {figures}",
        difference=difference,
        standard_error=standard_error,
    )
