"""Logits into probabilities that can be trusted: Platt scaling, and how far off they are.

Pure functions; they know no model.

Shapes: N cases.
"""

import numpy as np
import numpy.typing as npt

from models.arrays import Float64Array

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

NUM_BINS = 15
_MAX_ITERATIONS = 50
_MIN_OF_EACH = 20


def platt_scaling(logit_N: FloatArray, positive_N: BoolArray) -> tuple[float, float]:
    """`(scale, shift)` that make `sigmoid(scale * logit + shift)` most likely.

    (1, 0), which changes nothing, where there are fewer than 20 positives or negatives. Platt, 1999,
    "Probabilistic outputs for support vector machines", with its smoothed targets, by Newton's method.
    """
    num_positive, num_negative = int(positive_N.sum()), int((~positive_N).sum())
    if min(num_positive, num_negative) < _MIN_OF_EACH:
        return 1.0, 0.0
    target_N = np.where(positive_N, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    input_N2 = np.stack([logit_N.astype(np.float64), np.ones(len(logit_N))], axis=1)
    weight_2 = np.array([1.0, 0.0])
    loss = _cross_entropy(input_N2 @ weight_2, target_N)
    for _ in range(_MAX_ITERATIONS):
        probability_N = 1.0 / (1.0 + np.exp(-input_N2 @ weight_2))
        gradient_2 = input_N2.T @ (probability_N - target_N)
        curvature_N = probability_N * (1.0 - probability_N)
        hessian_22 = (input_N2 * curvature_N[:, None]).T @ input_N2 + 1e-9 * np.eye(2)
        step_2, size = np.linalg.solve(hessian_22, gradient_2), 1.0
        while _cross_entropy(input_N2 @ (weight_2 - size * step_2), target_N) > loss and size > 1e-6:
            size /= 2
        weight_2 = weight_2 - size * step_2
        before, loss = loss, _cross_entropy(input_N2 @ weight_2, target_N)
        if before - loss < 1e-9 * len(logit_N):
            break
    return float(weight_2[0]), float(weight_2[1])


def expected_calibration_error(
    probability_N: FloatArray, positive_N: BoolArray, num_bins: int = NUM_BINS
) -> float:
    """Mean distance of predicted and observed shares over bins of equally many cases (Nixon et al., 2019)."""
    if not len(probability_N):
        return 0.0
    order_N = np.argsort(probability_N, kind="stable")
    gaps = [
        len(part) * abs(float(probability_N[part].mean()) - float(positive_N[part].mean()))
        for part in np.array_split(order_N, min(num_bins, len(order_N)))
    ]
    return float(sum(gaps) / len(order_N))


def _cross_entropy(logit_N: Float64Array, target_N: Float64Array) -> float:
    return float((np.logaddexp(0.0, logit_N) - target_N * logit_N).sum())
