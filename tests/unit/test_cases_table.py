from types import SimpleNamespace
from typing import Any

from tests.cases_table import Case


def report(when: str, *, failed: bool = False, skipped: bool = False, figure: object = None) -> Any:
    return SimpleNamespace(
        when=when,
        duration=0.5,
        failed=failed,
        skipped=skipped,
        user_properties=[] if figure is None else [("figure", figure)],
    )


def test_a_case_is_right_only_if_every_phase_of_every_test_passed() -> None:
    case = Case()
    case.add(report("setup"))
    case.add(report("call", figure=0.2))
    assert (case.outcome, case.seconds, case.figures) == ("right", 1.0, ["0.2"])
    case.add(report("teardown", failed=True))
    case.add(report("call"))
    assert case.outcome == "WRONG"


def test_a_case_that_was_skipped_did_not_run() -> None:
    case = Case()
    case.add(report("call", skipped=True))
    assert case.outcome == "not run"
