"""The steps of training, on one of any number of workers.

Texts are shared out, vectors gathered, and every worker computes the loss of the whole batch: negatives are shared
across workers, and the gradient is that of one worker with all texts, to rounding.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from indexing.errors import DataError
from jobs.config.training import TrainingConfig
from jobs.training.encoder.batches import Step, Steps, unique_texts
from jobs.training.encoder.losses import in_batch_accuracy, info_nce
from jobs.training.encoder.trainable import TrainableEncoder

BUCKET_NUMBERS = 8_388_608
"""Of gradients that are summed over the workers at once; 32 MiB."""


def make_optimizer(encoder: TrainableEncoder, settings: TrainingConfig) -> torch.optim.AdamW:
    weights = encoder.trainable()
    decayed = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def run_steps(
    encoder: TrainableEncoder,
    optimizer: torch.optim.Optimizer,
    steps: Steps,
    settings: TrainingConfig,
    first_step: int = 0,
) -> Iterator[tuple[int, float, float]]:
    """Yields (step, loss, in-batch accuracy) after each. Raises DataError when the loss is no longer finite."""
    weights = encoder.trainable()
    for number in range(first_step, settings.steps):
        optimizer.zero_grad(set_to_none=True)
        loss, accuracy = backward(encoder, steps.step(number), settings)
        if not math.isfinite(loss):
            raise DataError(
                f"training: expected a finite loss, got {loss} at step {number}; lower training.learning_rate, or set "
                "encoder.dtype=float32"
            )
        sum_over_workers(weights)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.rate_at(number)
        optimizer.step()
        yield number, loss, accuracy


def backward(encoder: TrainableEncoder, step: Step, settings: TrainingConfig) -> tuple[float, float]:
    """Adds the gradient of this worker's texts; returns loss and in-batch accuracy of the whole batch.

    The loss is differentiated by the vectors first, then each batch of texts by the weights. Where the activations of
    all texts would not fit (`graph_tokens`), they are computed a second time for that, a batch at a time: gradient
    caching, Gao et al. 2021, arXiv:2101.06983.
    """
    rank, size = worker()
    texts = {"query": unique_texts(step.queries), "document": unique_texts(step.candidates)}
    batches = [
        (kind, batch) for kind, (distinct, _) in texts.items() for batch in encoder.batches(distinct[rank::size], kind)
    ]
    keeps_graph = sum(batch.input_ids.numel() for _, batch in batches) <= settings.graph_tokens
    with torch.set_grad_enabled(keeps_graph):
        outputs = [encoder(batch, kind) for kind, batch in batches]
    leaves = {}
    for kind, (distinct, _) in texts.items():
        own = [(batch.rows, output) for (of, batch), output in zip(batches, outputs, strict=True) if of == kind]
        leaves[kind] = gather(own, len(distinct), encoder).requires_grad_()
    queries, candidates = (leaves[kind][torch.from_numpy(rows).to(encoder.device)] for kind, (_, rows) in texts.items())
    targets = step.targets.to(encoder.device)
    loss = info_nce(
        queries,
        candidates,
        targets,
        temperature=settings.temperature,
        dims=[*settings.dims, encoder.dim],
    )
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for (kind, batch), output in zip(batches, outputs, strict=True):
        again = output if keeps_graph else encoder(batch, kind)
        again.backward(grads[kind][rank::size][torch.from_numpy(batch.rows).to(encoder.device)])
    # One copy from the device, which is waited for once.
    loss_and_accuracy = torch.stack([loss.detach(), in_batch_accuracy(queries, candidates, targets)]).tolist()
    return loss_and_accuracy[0], loss_and_accuracy[1]


def worker() -> tuple[int, int]:
    """(rank, number of workers)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(own: list[tuple[np.ndarray, torch.Tensor]], num_texts: int, encoder: TrainableEncoder) -> torch.Tensor:
    """float32 (num_texts, D), detached: the vectors of all workers, of which worker r made rows r, r + size, …"""
    size = worker()[1]
    share = torch.zeros(-(-num_texts // size), encoder.dim, device=encoder.device)
    for rows, output in own:
        share[torch.from_numpy(rows).to(encoder.device)] = output.detach()
    if size == 1:
        return share
    shares = [torch.empty_like(share) for _ in range(size)]
    dist.all_gather(shares, share)
    return torch.stack(shares, 1).flatten(0, 1)[:num_texts]


def sum_over_workers(weights: list[torch.nn.Parameter]) -> None:
    """Each worker's gradients become the sum of all: each has differentiated its own texts only."""
    if worker()[1] == 1:
        return
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for bucket in gradient_buckets(weights):
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        for grad, summed in zip(bucket, torch.split(flat, [grad.numel() for grad in bucket]), strict=True):
            grad.copy_(summed.view_as(grad))


def gradient_buckets(weights: list[torch.nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    """The gradients in order, together BUCKET_NUMBERS or a little more: a message for each would be mostly waiting."""
    bucket: list[torch.Tensor] = []
    for weight in weights:
        assert weight.grad is not None
        bucket.append(weight.grad)
        if sum(grad.numel() for grad in bucket) >= BUCKET_NUMBERS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
