"""The loss, against its definition written out; and what it leaves out."""

import numpy as np
import pytest
import torch
from sentence_transformers import util
from torch.nn.functional import normalize

from jobs.training.encoder.losses import Targets, in_batch_accuracy, info_nce, known_positives

TEMPERATURE = 0.1


def batch(num_pairs: int = 4, num_candidates: int = 6, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    queries, candidates = (torch.randn(rows, dim, generator=generator) for rows in (num_pairs, num_candidates))
    return normalize(queries, dim=1), normalize(candidates, dim=1)


def targets(num_pairs: int = 4, num_candidates: int = 6) -> Targets:
    return Targets(torch.eye(num_pairs, num_candidates, dtype=torch.bool), torch.zeros(num_candidates))


def loss_of(queries: torch.Tensor, candidates: torch.Tensor, known: Targets, dims: tuple[int, ...] = (8,)) -> float:
    return info_nce(queries, candidates, known, temperature=TEMPERATURE, dims=dims).item()


def test_the_loss_is_the_mean_of_both_directions_written_out() -> None:
    queries, candidates = batch()
    scores = np.exp(util.cos_sim(queries, candidates).numpy() / TEMPERATURE)
    own = np.diag(scores)
    forward = -np.log(own / scores.sum(axis=1)).mean()
    backward = -np.log(own / scores[:, :4].sum(axis=0)).mean()
    assert loss_of(queries, candidates, targets()) == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_another_positive_of_a_query_is_not_its_negative() -> None:
    queries, candidates = batch()
    known = targets()
    known.is_positive_PC[0, 5] = True
    hidden = loss_of(queries, candidates, known)
    candidates[5] = -candidates[5]  # where it is for query 0 must not matter, but it does for the others
    without = torch.cat([candidates[:5], -candidates[5:]])
    scores = np.exp((queries @ without.T).numpy() / TEMPERATURE)
    scores[0, 5] = 0
    forward = -np.log(np.diag(scores) / scores.sum(axis=1)).mean()
    backward = -np.log(np.diag(scores) / scores[:, :4].sum(axis=0)).mean()
    assert hidden == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_a_candidate_sampled_more_often_counts_less_as_a_negative() -> None:
    queries, candidates = batch()
    often = targets()
    often.log_expected_C[4] = 3.0
    assert loss_of(queries, candidates, often) < loss_of(queries, candidates, targets())


def test_equal_sampling_of_all_changes_nothing() -> None:
    queries, candidates = batch()
    shifted = Targets(targets().is_positive_PC, torch.full((6,), -2.5))
    assert loss_of(queries, candidates, shifted) == pytest.approx(loss_of(queries, candidates, targets()), rel=1e-5)


def test_matryoshka_dimensions_are_renormalised_and_averaged() -> None:
    queries, candidates = batch()
    short = loss_of(normalize(queries[:, :3], dim=1), normalize(candidates[:, :3], dim=1), targets(), (3,))
    whole = loss_of(queries, candidates, targets())
    assert loss_of(queries, candidates, targets(), (3, 8)) == pytest.approx((short + whole) / 2, rel=1e-5)


def test_known_positives_are_found_by_group_and_item() -> None:
    known = np.sort(np.array([0 * 10 + 3, 0 * 10 + 7, 2 * 10 + 3]))
    found = known_positives(np.array([0, 1, 2]), np.array([3, 7, 9]), known, 10)
    assert found.tolist() == [[True, True, False], [False, False, False], [True, False, False]]


def test_accuracy_counts_queries_whose_own_item_is_nearest_but_for_other_known_ones() -> None:
    queries, candidates = torch.eye(3, 4), torch.eye(4, 4)
    known = targets(3, 4)
    assert in_batch_accuracy(queries, candidates, known) == 1
    queries[0] = torch.tensor([0.1, 0.0, 0.0, 0.9])
    assert in_batch_accuracy(queries, candidates, known) == pytest.approx(2 / 3)
    known.is_positive_PC[0, 3] = True
    assert in_batch_accuracy(queries, candidates, known) == 1
