"""What training minimises: symmetric InfoNCE over the pairs of a batch and shared negatives.

Shape letters: P pairs, C candidates (the items of the pairs, then further negatives), D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize


@dataclass(frozen=True)
class Targets:
    """What is known of a batch in addition to its vectors."""

    is_positive_PC: torch.Tensor
    """bool: which candidates the query of a pair, or another of its group, is known to lead to; the pair's own item is
    in column p of row p."""
    log_expected_C: torch.Tensor
    """float32: log of how often the sampling is expected to put the candidate into a batch."""

    def to(self, device: torch.device) -> "Targets":
        return Targets(self.is_positive_PC.to(device), self.log_expected_C.to(device))


def info_nce(
    queries_PD: torch.Tensor,
    candidates_CD: torch.Tensor,
    targets: Targets,
    *,
    temperature: float,
    dims: Sequence[int],
) -> torch.Tensor:
    """The mean over `dims` (Matryoshka: the first `dim` components, renormalised; Kusupati et al. 2022,
    arXiv:2205.13147) of the loss from queries to candidates and back (CLIP, Radford et al. 2021, arXiv:2103.00020).

    Vectors are float32, unit norm. Known positives other than the pair's own are left out of its softmax.
    """
    losses = []
    for dim in dims:
        queries, candidates = normalize(queries_PD[:, :dim], dim=1), normalize(candidates_CD[:, :dim], dim=1)
        losses.append(_symmetric(queries @ candidates.T / temperature, targets))
    return torch.stack(losses).mean()


@torch.no_grad()
def in_batch_accuracy(queries_PD: torch.Tensor, candidates_CD: torch.Tensor, targets: Targets) -> torch.Tensor:
    """float32 (): the share of pairs whose own item is nearest to the query, other known positives left out."""
    best_P = _hide_others(queries_PD @ candidates_CD.T, targets).argmax(dim=1)
    return (best_P == torch.arange(len(best_P), device=best_P.device)).float().mean()


def _hide_others(scores_PC: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Without the known positives of a query that are not the pair's own."""
    own = torch.arange(len(scores_PC), device=scores_PC.device)
    hidden_PC = targets.is_positive_PC.clone()
    hidden_PC[own, own] = False
    return scores_PC.masked_fill(hidden_PC, -torch.inf)


def _symmetric(scores_PC: torch.Tensor, targets: Targets) -> torch.Tensor:
    num_pairs = len(scores_PC)
    own = torch.arange(num_pairs, device=scores_PC.device)
    masked_PC = _hide_others(scores_PC, targets)
    # Popular items are negatives more often than their share of the catalogue; subtracting log Q corrects for that
    # (sampled softmax with logQ correction, Yi et al. 2019, doi:10.1145/3298689.3346996; over a mix of sources as in
    # Yang et al. 2020, doi:10.1145/3366424.3386195).
    forward = cross_entropy(masked_PC - targets.log_expected_C, own)
    backward = cross_entropy(masked_PC[:, :num_pairs].T, own)
    return (forward + backward) / 2


def known_positives(query_groups: np.ndarray, candidates: np.ndarray, known: np.ndarray, num_items: int) -> np.ndarray:
    """bool (P, C): whether (group, item) is among `known`.

    query_groups int64 (P,) and candidates int64 (C,), or (P, C), are numbers of groups and items; `known` int64
    (num_known,) holds group × num_items + item, sorted.
    """
    wanted = query_groups[:, None] * num_items + candidates
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: np.ndarray = known[places] == wanted
    return found
