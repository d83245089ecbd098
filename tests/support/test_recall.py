import numpy as np
import pytest

from tests.support.recall import recall_at_k, recall_per_query


def test_recall_is_the_share_of_true_neighbours_found_in_any_order() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 2, 1], [8, 9, 1, 2]])
    assert recall_per_query(found, truth).tolist() == [1.0, 0.25]
    assert recall_at_k(found, truth) == 0.625


def test_recall_of_nothing_or_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="got"):
        recall_at_k(np.empty((0, 10)), np.empty((0, 10)))
    with pytest.raises(ValueError, match="got"):
        recall_at_k(np.ones((2, 3)), np.ones((2, 4)))
