"""What is concluded from few events, and what the end of the tour says."""

import pytest

from services.demo.findings import Findings, is_above, promises_panel


@pytest.mark.parametrize(
    ("recall", "other", "num_events", "expected"),
    [
        (0.10, 0.08, 500, True),
        (0.08, 0.09, 500, None),  # within the noise of 500 events
        (0.03, 0.09, 500, False),
        (0.10, 0.08, 99, None),
        (None, 0.08, 500, None),
    ],
)
def test_a_recall_is_above_another_or_not_or_that_is_open(
    recall: float | None, other: float, num_events: int, expected: bool | None
) -> None:
    assert is_above(recall, other, num_events) is expected


def test_what_is_undecided_is_no_failure_and_is_said() -> None:
    findings = Findings()
    findings.judge(True, "one holds")
    findings.judge(None, "another holds")
    assert findings.broken == []
    assert findings.undecided == ["whether another holds (too few events)"]
    panel = promises_panel(findings, 200.0)
    assert panel.border_style == "green"
    assert "every promise that could be decided was kept" in str(panel.renderable)
    assert "undecided: whether another holds" in str(panel.renderable)
    findings.judge(False, "a third holds")
    assert promises_panel(findings, 200.0).border_style == "red"
