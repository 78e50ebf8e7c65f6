"""Replay mixes two splits at a rate, as a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.data import WindowSampler
from thalweg.data.replay import ReplaySampler
from thalweg.errors import DataError

CONTEXT = 7


class Tokens:
    """A split whose token number i is i + first."""

    name = "train"

    def __init__(self, count: int, first: int = 0) -> None:
        self.token_count, self.first = count, first

    def read_into(self, start: int, out: np.ndarray) -> None:
        assert start + len(out) <= self.token_count
        out[:] = np.arange(start, start + len(out)) + self.first


OLD_FIRST = 10_000_000


def sampler(rate, batch_size=64, seed=0, rank=0, world=1, new_windows=500, old_windows=300):
    new, old = Tokens(new_windows * CONTEXT + 1), Tokens(old_windows * CONTEXT + 1, OLD_FIRST)
    return ReplaySampler(new, old, CONTEXT, batch_size, seed, rate, rank, world)


def starts(batch):
    return batch["input_ids"][:, 0].numpy()


def test_accounting_oracle():
    """1000 batches of 64 at 5%: 3200 old windows, and 95% of the tokens are new."""
    replay = sampler(0.05)
    olds = sum(int((starts(replay.batch(step)) >= OLD_FIRST).sum()) for step in range(1000))
    assert olds == 3200
    assert 1 - olds / 64_000 == 0.95


@given(st.floats(0, 1), st.integers(1, 70), st.integers(0, 10**9), st.integers(1, 200))
@settings(max_examples=200)
def test_any_stretch_of_batches_has_its_share_to_a_row(rate, batch_size, first, count):
    replay = sampler(rate, batch_size)
    olds = sum(int(replay.replayed(step).sum()) for step in range(first, first + count))
    assert abs(olds - rate * batch_size * count) < 1 + 1e-6 * batch_size * count


@given(st.floats(0.001, 0.999), st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=100)
def test_ranks_share_the_global_batch_evenly(rate, step, world):
    whole = sampler(rate, 32).batch(step)
    ranks = [sampler(rate, 32, rank=rank, world=world) for rank in range(world)]
    for key in ("input_ids", "targets"):
        assert torch.equal(torch.cat([rank.batch(step)[key] for rank in ranks]), whole[key])
    shares = [int(rank.replayed(step).sum()) for rank in ranks]
    assert max(shares) - min(shares) <= 1


def test_a_step_needs_no_history_and_seeds_differ():
    straight = sampler(0.3)
    history = [straight.batch(step)["input_ids"] for step in range(40)]
    assert torch.equal(sampler(0.3).batch(39)["input_ids"], history[39])
    assert not torch.equal(sampler(0.3, seed=1).batch(39)["input_ids"], history[39])


def test_without_replay_it_is_the_window_sampler():
    replay, plain = sampler(0.0, seed=3), WindowSampler(Tokens(500 * CONTEXT + 1), CONTEXT, 64, seed=3)
    assert replay.windows == plain.windows
    for step in range(20):
        assert all(torch.equal(replay.batch(step)[key], plain.batch(step)[key]) for key in ("input_ids", "targets"))
        assert replay.epoch(step) == plain.epoch(step)


def test_all_replay_is_the_old_corpus_in_an_order_of_its_own():
    replay, plain = sampler(1.0), WindowSampler(Tokens(300 * CONTEXT + 1), CONTEXT, 64, seed=0)
    assert replay.windows == 300
    seen = np.concatenate([starts(replay.batch(step)) for step in range(5)])
    assert (seen >= OLD_FIRST).all()
    before = np.concatenate([starts(plain.batch(step)) for step in range(5)])
    assert np.count_nonzero(seen - OLD_FIRST == before) < 12


@pytest.mark.parametrize("rate", [0.05, 0.25, 1 / 3, 0.5, 0.9])
def test_each_split_is_visited_in_epochs(rate):
    """Every window of either split once before any is seen again."""
    replay = sampler(rate, batch_size=20, new_windows=30, old_windows=20)
    seen = np.concatenate([starts(replay.batch(step)) for step in range(200)])
    for windows, taken in ((30, seen[seen < OLD_FIRST]), (20, seen[seen >= OLD_FIRST] - OLD_FIRST)):
        whole = len(taken) // windows
        assert whole >= 3
        for epoch in taken[: whole * windows].reshape(whole, windows):
            assert sorted(epoch) == [CONTEXT * window for window in range(windows)]


def test_an_epoch_is_one_pass_over_the_new_corpus():
    replay = sampler(0.2, batch_size=50, new_windows=400)
    assert replay.windows == 500
    assert replay.epoch(10) == 1.0
    seen = np.concatenate([starts(replay.batch(step)) for step in range(10)])
    assert sorted(seen[seen < OLD_FIRST]) == [CONTEXT * window for window in range(400)]


def test_targets_are_inputs_shifted_by_one():
    batch = sampler(0.4).batch(5)
    assert batch["input_ids"].shape == (64, CONTEXT)
    assert batch["input_ids"].dtype == torch.long
    assert torch.equal(batch["targets"], batch["input_ids"] + 1)


def test_an_old_corpus_smaller_than_a_batch_is_enough_for_its_share():
    replay = sampler(0.05, batch_size=64, old_windows=4)
    assert len(starts(replay.batch(0))) == 64
    with pytest.raises(DataError, match="smaller than one batch"):
        sampler(0.05, batch_size=64, old_windows=3)


def test_mistakes_are_named():
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(DataError, match="no share"):
            sampler(rate)
    with pytest.raises(DataError, match="cannot be shared equally by 3 ranks"):
        sampler(0.1, batch_size=64, world=3)


def test_what_is_set_aside_is_of_the_new_split_and_in_no_batch():
    replay = sampler(0.2)
    aside = replay.reserve(0.2)
    assert aside.windows == 100
    assert replay.windows == round(400 / 0.8)
    kept = {start for step in range(10) for start in starts(aside.batch(step)).tolist()}
    seen = {start for step in range(30) for start in starts(replay.batch(step)).tolist()}
    assert kept == set(range(400 * CONTEXT, 500 * CONTEXT, CONTEXT))
    assert not seen & kept
