from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.data import TokenStore, WindowSampler
from thalweg.data.sampler import epoch_keys, permute
from thalweg.errors import DataError


class Tokens:
    """A split whose token number i is i."""

    name = "train"

    def __init__(self, count: int) -> None:
        self.token_count = count

    def read_into(self, start: int, out: np.ndarray) -> None:
        assert start + len(out) <= self.token_count
        out[:] = np.arange(start, start + len(out))


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(size), size, epoch_keys(seed, epoch)[:, None])


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097, 65_537, 100_003])
def test_it_is_a_permutation(size: int) -> None:
    assert np.array_equal(np.sort(order(size)), np.arange(size))


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 100))
@settings(max_examples=60)
def test_it_is_a_permutation_for_any_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(order(size, seed, epoch)), np.arange(size))


def test_epochs_and_seeds_differ_and_look_random() -> None:
    size = 10_000
    first, later, other = order(size), order(size, epoch=1), order(size, seed=1)
    for one, two in ((first, later), (first, other), (first, np.arange(size))):
        # Two random permutations agree in one place on average; Poisson(1) exceeds 8 once in a million.
        assert np.count_nonzero(one == two) <= 8
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    # Neighbours are no neighbours any more.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_all_orders_of_a_few_windows_occur() -> None:
    orders = {tuple(order(4, seed)) for seed in range(500)}
    assert len(orders) == 24


def test_an_epoch_visits_every_window_once() -> None:
    sampler = WindowSampler(Tokens(1 + 7 * 12), context=7, batch_size=4, seed=3)
    assert sampler.windows == 12
    for epoch in range(3):
        starts = torch.cat([sampler.batch(epoch * 3 + step)["input_ids"][:, 0] for step in range(3)])
        assert sorted(starts.tolist()) == [7 * window for window in range(12)]


def test_batches_may_span_two_epochs() -> None:
    sampler = WindowSampler(Tokens(51), context=10, batch_size=3, seed=0)
    assert sampler.windows == 5
    seen = np.concatenate([sampler.window_indices(step) for step in range(10)])
    assert len(seen) == 30
    for epoch in range(6):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert sampler.epoch(0) == 0.0
    assert sampler.epoch(5) == 3.0


def test_targets_are_inputs_shifted_by_one() -> None:
    batch = WindowSampler(Tokens(1000), context=9, batch_size=5, seed=1).batch(7)
    assert batch["input_ids"].shape == batch["targets"].shape == (5, 9)
    assert batch["input_ids"].dtype == batch["targets"].dtype == torch.long
    assert torch.equal(batch["targets"], batch["input_ids"] + 1)
    assert batch["input_ids"].is_contiguous()
    assert batch["targets"].is_contiguous()


def test_a_step_needs_no_history() -> None:
    straight = WindowSampler(Tokens(5000), 16, 8, seed=5)
    history = [straight.batch(step)["input_ids"] for step in range(100)]
    assert torch.equal(WindowSampler(Tokens(5000), 16, 8, seed=5).batch(99)["input_ids"], history[99])
    assert not torch.equal(WindowSampler(Tokens(5000), 16, 8, seed=6).batch(99)["input_ids"], history[99])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(world: int) -> None:
    whole = WindowSampler(Tokens(2000), 10, 6, seed=2)
    ranks = [WindowSampler(Tokens(2000), 10, 6, seed=2, rank=rank, world_size=world) for rank in range(world)]
    for step in (0, 33, 34):
        parts = torch.cat([sampler.batch(step)["input_ids"] for sampler in ranks])
        assert torch.equal(parts, whole.batch(step)["input_ids"])


def test_impossible_batches_say_what_is_needed() -> None:
    WindowSampler(Tokens(41), 10, 4, seed=0)
    with pytest.raises(DataError, match="has 40 tokens and a batch of 4 windows of 10 tokens needs 41") as caught:
        WindowSampler(Tokens(40), 10, 4, seed=0)
    assert "shorter context" in caught.value.fix
    with pytest.raises(DataError, match="smaller than one batch"):
        WindowSampler(Tokens(0), 10, 1, seed=0)
    with pytest.raises(DataError, match="cannot be shared equally by 3 ranks"):
        WindowSampler(Tokens(1000), 10, 4, seed=0, world_size=3)
    for context, batch_size, rank in ((0, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, -1)):
        with pytest.raises(DataError, match="make no batch"):
            WindowSampler(Tokens(1000), context, batch_size, seed=0, rank=rank)


def test_a_real_store_gives_its_tokens(store: TokenStore) -> None:
    sampler = WindowSampler(store.train, context=33, batch_size=4, seed=0)
    for row, window in zip(sampler.batch(2)["input_ids"], sampler.window_indices(2), strict=True):
        assert row.tolist() == store.train.read(window * 33, window * 33 + 33).tolist()
    last = (sampler.windows - 1) * 33
    assert last + 34 <= store.train.token_count


def test_a_batch_is_fast(store: TokenStore) -> None:
    sampler = WindowSampler(store.train, context=64, batch_size=16, seed=0)
    times = []
    for step in range(200):
        started = time.perf_counter()
        sampler.batch(step)
        times.append(time.perf_counter() - started)
    # About 0.2 ms; the bound leaves room for a busy machine.
    assert min(times) < 1e-3


def test_what_is_set_aside_is_in_no_batch() -> None:
    sampler = WindowSampler(Tokens(10 * 100 + 1), context=10, batch_size=8, seed=3)
    aside = sampler.reserve(0.15)
    assert (sampler.windows, aside.windows) == (85, 15)
    seen, kept = (
        {row for step in range(40) for row in each.batch(step)["input_ids"][:, 0].tolist()} for each in (sampler, aside)
    )
    assert seen == set(range(0, 850, 10))
    assert kept == set(range(850, 1000, 10))


def test_a_share_that_is_less_than_a_batch_is_a_batch() -> None:
    sampler = WindowSampler(Tokens(10 * 20 + 1), context=10, batch_size=8, seed=3)
    assert sampler.reserve(0.0).windows == 8
    with pytest.raises(DataError, match="too few"):
        sampler.reserve(0.5)
