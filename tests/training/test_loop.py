"""Steps of training: what they learn, and that neither caching, nor workers, nor restarts change it."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training.worlds import make_items, make_log, tiny_model, tiny_training

from indexing.encoder import EncoderSettings
from indexing.errors import DataError
from indexing.store import open_store
from jobs.config.training import TrainingConfig
from jobs.training.encoder.batches import Steps
from jobs.training.encoder.data import log_pairs
from jobs.training.encoder.loop import backward, make_optimizer, run_steps, sum_over_workers
from jobs.training.encoder.train import TrainedSteps, TrainingState, advance, load_checkpoint, save_checkpoint
from jobs.training.encoder.trainable import TrainableEncoder
from jobs.workspace.artifact import Artifact


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def make_steps(settings: TrainingConfig) -> Steps:
    items = pa.table(
        {name: [row[key] for row in make_items()] for name, key in (("item_id", "item_id"), ("text", "title"))}
    )
    pairs = log_pairs(make_log(range(16)))
    return Steps(pairs, items, np.empty((pairs.num_rows, 0), np.int64), settings)


def make_encoder(model: Path) -> TrainableEncoder:
    return TrainableEncoder(model, EncoderSettings(model=str(model), dtype="float32"))


def gradients(encoder: TrainableEncoder) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in encoder.trainable() if weight.grad is not None])


def test_training_finds_what_words_alone_do_not(model: Path) -> None:
    settings = tiny_training(steps=40)
    encoder = make_encoder(model)
    losses = [
        loss for _, loss, _ in run_steps(encoder, make_optimizer(encoder, settings), make_steps(settings), settings)
    ]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_gradient_caching_changes_memory_and_not_the_gradient(model: Path) -> None:
    encoder = make_encoder(model)
    found = []
    for graph_tokens in (32_768, 1):
        settings = tiny_training(graph_tokens=graph_tokens)
        encoder.zero_grad()
        loss = backward(encoder, make_steps(settings).step(0), settings)
        found.append((loss, gradients(encoder)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_gradients_are_summed_in_few_messages_that_hold_each_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(model)
    for number, weight in enumerate(encoder.trainable()):
        weight.grad = torch.full_like(weight, number)
    before, messages = gradients(encoder), []

    def double(flat: torch.Tensor) -> None:
        messages.append(flat.numel())
        flat.mul_(2)

    monkeypatch.setattr("jobs.training.encoder.loop.worker", lambda: (0, 2))
    monkeypatch.setattr("jobs.training.encoder.loop.BUCKET_NUMBERS", 5_000)
    monkeypatch.setattr("torch.distributed.all_reduce", double)
    sum_over_workers(encoder.trainable())
    torch.testing.assert_close(gradients(encoder), 2 * before, rtol=0, atol=0)
    assert sum(messages) == before.numel() and 2 <= len(messages) <= before.numel() / 5_000 + 1


def test_the_gradient_is_that_of_the_loss_by_finite_differences(model: Path) -> None:
    settings, encoder = tiny_training(), make_encoder(model)
    step = make_steps(settings).step(0)
    backward(encoder, step, settings)
    weight = encoder.tower("query").model.encoder.layer[1].output.dense.weight
    slope, size = weight.grad[3, 5].item(), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3, 5] += sign * size
        values.append(backward(encoder, step, settings)[0])
        with torch.no_grad():
            weight[3, 5] -= sign * size
    assert slope == pytest.approx((values[0] - values[1]) / (2 * size), rel=0.05, abs=1e-5)


def run_worker(rank: int, size: int, model: Path, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    settings, encoder = tiny_training(), make_encoder(model)
    loss = backward(encoder, make_steps(settings).step(0), settings)
    sum_over_workers(encoder.trainable())
    if rank == size - 1:
        torch.save((loss, gradients(encoder)), folder / "found.pt")
    dist.destroy_process_group()


def test_two_workers_have_the_loss_and_gradient_of_one(model: Path, tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=run_worker, args=(1, 2, model, tmp_path))
    other.start()
    run_worker(0, 2, model, tmp_path)  # in this process, which has imported torch already
    other.join()
    assert other.exitcode == 0
    loss, found = torch.load(tmp_path / "found.pt", weights_only=True)
    settings, encoder = tiny_training(), make_encoder(model)
    assert backward(encoder, make_steps(settings).step(0), settings) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found, gradients(encoder), rtol=1e-3, atol=1e-6)


def test_the_same_seed_gives_the_same_weights(model: Path) -> None:
    def train() -> torch.Tensor:
        settings, encoder = tiny_training(steps=3), make_encoder(model)
        list(run_steps(encoder, make_optimizer(encoder, settings), make_steps(settings), settings))
        return torch.cat([weight.detach().flatten() for weight in encoder.trainable()])

    assert torch.equal(train(), train())


def test_a_training_that_resumes_from_a_checkpoint_ends_with_the_weights_of_one_that_never_stopped(
    model: Path, tmp_path: Path
) -> None:
    settings = tiny_training(steps=20)  # of 10 and less, the average is the last step
    artifact = Artifact(open_store(str(tmp_path)), "training", TrainedSteps)
    whole, first, second = (TrainingState.begin(make_encoder(model), settings) for _ in range(3))
    assert list(advance(whole, make_steps(settings), settings)) == list(range(1, 21))
    for done in advance(first, make_steps(settings), settings):
        if done in (16, 18):
            save_checkpoint(artifact, first)
        if done == 18:
            break
    assert len(list(tmp_path.glob("training/checkpoints/*"))) == 1, "an older one is of no use any more"
    load_checkpoint(artifact, second)
    assert list(advance(second, make_steps(settings), settings)) == [19, 20]
    assert [loss for _, loss, *_ in second.curve] == [loss for _, loss, *_ in whole.curve]
    for name in ("encoder", "averaged"):
        for found, wanted in zip(getattr(second, name).parameters(), getattr(whole, name).parameters(), strict=True):
            assert torch.equal(found, wanted)


def test_the_result_is_an_average_over_the_last_tenth_of_the_steps(model: Path) -> None:
    settings = tiny_training(steps=20)
    state, mean = TrainingState.begin(make_encoder(model), settings), torch.zeros(0)
    for done in advance(state, make_steps(settings), settings):
        weights = torch.cat([weight.detach().flatten() for weight in state.encoder.parameters()])
        mean = weights if done == 1 else (mean + weights) / 2  # a window of two steps
    found = torch.cat([weight.detach().flatten() for weight in state.averaged.parameters()])
    torch.testing.assert_close(found, mean)
    assert not torch.equal(found, weights)


def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(model: Path) -> None:
    settings, encoder = tiny_training(), make_encoder(model)
    with torch.no_grad():
        encoder.tower("query").model.encoder.layer[0].output.dense.weight.fill_(math.nan)
    with pytest.raises(DataError, match=r"finite loss, got nan at step 0; lower training\.learning_rate"):
        list(run_steps(encoder, make_optimizer(encoder, settings), make_steps(settings), settings))
