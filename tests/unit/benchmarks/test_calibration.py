"""Platt scaling finds the distortion that was put in; the calibration error sees it."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import calibration

    return calibration


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def drawn(num_cases: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logit = random.normal(-0.5, 2.0, num_cases)
    return logit, random.random(num_cases) < sigmoid(logit)


@pytest.mark.parametrize(("scale", "shift"), [(0.4, 1.0), (3.0, -2.0), (1.0, 0.0)])
def test_a_distorted_logit_is_put_right(calibration: ModuleType, scale: float, shift: float) -> None:
    logit, positive = drawn(20_000, 0)
    distorted = (logit - shift) / scale
    found = calibration.platt_scaling(distorted, positive)
    assert found == pytest.approx((scale, shift), rel=0.08, abs=0.08)
    other, other_positive = drawn(20_000, 1)
    distorted = (other - shift) / scale
    before = calibration.expected_calibration_error(sigmoid(distorted), other_positive)
    after = calibration.expected_calibration_error(sigmoid(found[0] * distorted + found[1]), other_positive)
    assert after < 0.02
    assert after <= before + 0.005


def test_too_few_cases_change_nothing(calibration: ModuleType) -> None:
    assert calibration.platt_scaling(np.linspace(-1, 1, 30), np.arange(30) < 5) == (1.0, 0.0)


def test_separable_cases_give_finite_numbers(calibration: ModuleType) -> None:
    logit = np.linspace(-3, 3, 200)
    scale, shift = calibration.platt_scaling(logit, logit > 0)
    assert np.isfinite([scale, shift]).all()
    assert scale > 1


def test_calibration_error_is_the_distance_of_shares(calibration: ModuleType) -> None:
    positive = np.arange(100) % 4 == 0
    assert calibration.expected_calibration_error(np.full(100, 0.25), positive, num_bins=1) == pytest.approx(
        0.0
    )
    assert calibration.expected_calibration_error(np.full(100, 0.75), positive, num_bins=1) == pytest.approx(
        0.5
    )
    assert calibration.expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)) == 0.0
