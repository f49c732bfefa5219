"""What the tour concludes: promises kept or not, and what could not be decided.

Plain rules on figures; knows nothing of the services.
"""

import math
from dataclasses import dataclass, field

from rich.panel import Panel

# Of fewer events nothing is concluded.
_MIN_COMPARED = 100


def is_above(recall: float | None, other: float | None, num_events: int) -> bool | None:
    """Whether a Recall is above another on the same events; None where they are too few to tell.

    Below by less than 1.645 standard errors of two independent shares may be chance; pairs vary less.
    """
    if recall is None or other is None or num_events < _MIN_COMPARED:
        return None
    if recall > other:
        return True
    spread = sum(share * (1.0 - share) for share in (recall, other))
    return None if other - recall < 1.645 * math.sqrt(spread / num_events) else False


@dataclass
class Findings:
    """What the tour saw: the promises that were not kept, and those on which nothing could be decided."""

    broken: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def leave_open(self, text: str) -> None:
        """Notes what could not be decided: no failure, and no success."""
        self.undecided.append(text)

    def judge(self, held: bool | None, text: str) -> None:
        """Notes that `text` does not hold, or, for None, that it is undecided whether it does."""
        if held is None:
            self.leave_open(f"whether {text} (too few events)")
        else:
            self.promise(held, f"it does not hold that {text}")

    def promise(self, kept: bool, text: str) -> None:
        """Notes `text` unless the promise was kept."""
        if not kept:
            self.broken.append(text)


def promises_panel(findings: Findings, seconds: float) -> Panel:
    """The end of the tour: what held, or what did not."""
    lines = [f"not kept: {text}" for text in findings.broken]
    if not lines:
        lines = [
            "every promise that could be decided was kept" if findings.undecided else "every promise was kept"
        ]
    lines += [f"undecided: {text}" for text in findings.undecided]
    colour = "red" if findings.broken else "green"
    return Panel("\n".join(lines), title=f"tour ended after {seconds:.0f} s", border_style=colour)
