"""Which of an item's vectors counts: one space for all, and a reason for each that lies elsewhere."""

import numpy as np
import pytest

from models.tokenizers.content import Space, common_space, vector_in

NAN = float("nan")


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_the_space_is_where_most_items_have_a_vector_that_can_be_used() -> None:
    image, text = {"image": array(1, 2)}, {"text": array(1, 2, 3)}
    assert common_space([]) is None
    assert common_space([{}, {}]) is None
    assert common_space([{"text": array(NAN, 1)}, {"text": array(0, 0)}]) is None
    assert common_space([image, text, image]) == Space(modality="image", width=2)
    assert common_space([image, text]) == Space(modality="text", width=3)
    assert common_space([image | text, image, {}]) == Space(modality="image", width=2)
    # the other width of a modality is another space
    assert common_space([{"text": array(1, 2)}, text, text]) == Space(modality="text", width=3)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ({}, ""),
        ({"text": array(1, 2)}, "of text, not image"),
        ({"image": array(1, 2, 3)}, "of another width than 2"),
        ({"image": array(NAN, 1)}, "with values that are not finite"),
        ({"image": array(0, 0), "text": array(1, 2)}, "of zeros"),
    ],
)
def test_a_vector_elsewhere_counts_as_none_with_the_reason(
    vectors: dict[str, np.ndarray], reason: str
) -> None:
    assert vector_in(Space(modality="image", width=2), vectors) == (None, reason)


def test_a_vector_in_the_space_has_length_one() -> None:
    vector, reason = vector_in(Space(modality="image", width=2), {"image": array(3, 4), "text": array(1, 0)})
    assert vector is not None
    assert (vector.tolist(), reason) == (pytest.approx([0.6, 0.8]), "")


def test_a_release_that_names_no_modality_takes_text_before_others() -> None:
    unnamed = Space(modality="", width=2)
    vector, _ = vector_in(unnamed, {"image": array(0, 1), "text": array(1, 0)})
    assert vector is not None
    assert vector.tolist() == [1, 0]
    vector, _ = vector_in(unnamed, {"text": array(1, 0, 0), "image": array(0, 1)})
    assert vector is not None
    assert vector.tolist() == [0, 1]
