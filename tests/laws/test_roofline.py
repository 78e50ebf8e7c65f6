"""The roofline: times by number, limits, experts, memory, and calibration."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.roofline import (
    Architecture,
    Machine,
    Precision,
    Workload,
    decode,
    distinct_experts,
    latency,
    linear,
    memory,
    operators,
    prefill,
)
from thalweg.laws.roofline_calibration import calibrate
from thalweg.models.ladder import LADDER, flops_per_token

HALF = Precision()
ORIN = Machine(85e12, 204.8e9)
DENSE = Architecture(layers=24, width=896, kv_width=128, expert_width=4864, vocab_size=151_936, tied=True)
SPARSE = Architecture(layers=12, width=768, kv_width=768, expert_width=1024, vocab_size=50_000, experts=16, active=2)


def seconds(listed, machine=ORIN):
    return sum(one.count * one.seconds(machine) for one in listed)


@pytest.mark.parametrize(
    ("tokens", "intensity", "microseconds"),
    [(1, 0.9988, 41.01), (64, 59.4, 44.16), (415, 275.5, 61.71), (1024, 455, 101.06)],
)
def test_a_linear_map_by_number(tokens, intensity, microseconds):
    one = linear("", tokens, 1024, 4096, HALF)
    assert one.flops / one.bytes == pytest.approx(intensity, rel=1e-3)
    assert one.seconds(ORIN) * 1e6 == pytest.approx(microseconds, abs=0.006)
    assert (one.flops / one.bytes > 85e12 / 204.8e9) == (tokens == 1024)


def test_limits_and_shape():
    one = linear("", 300, 1024, 4096, HALF)
    assert one.seconds(Machine(85e12, math.inf)) == one.flops / 85e12
    assert one.seconds(Machine(math.inf, 204.8e9)) == one.bytes / 204.8e9
    times = np.array([linear("", n, 1024, 4096, HALF).seconds(ORIN) for n in range(1, 1500)])
    assert (np.diff(times) > 0).all()
    assert (np.diff(times, 2) > -1e-18).all()
    # Two straight pieces.
    assert (np.diff(times, 2) > 1e-12).sum() <= 2


def test_one_token_reads_what_is_active_and_the_cache():
    """Without arithmetic and activations, decoding is (w N_active + 2 c l d_m S) / bandwidth, exactly."""
    machine, bare = Machine(math.inf, 204.8e9), Precision(2, 2, 0)
    for model in (DENSE, SPARSE):
        for context in (1, 1024, 30_000):
            bytes_read = 2 * model.activated + 2 * 2 * model.layers * model.kv_width * context
            assert seconds(decode(model, context, 1, bare), machine) == pytest.approx(bytes_read / 204.8e9, rel=1e-12)
    # With activations and arithmetic it stays affine in the context, and within 2% of that.
    times = [seconds(decode(DENSE, context, 1, HALF)) for context in (1000, 2000, 3000)]
    assert times[2] - times[1] == pytest.approx(times[1] - times[0], rel=1e-9)
    assert times[0] == pytest.approx((2 * DENSE.activated + 4 * 24 * 128 * 1000) / 204.8e9, rel=0.02)


def test_fewer_weight_bytes_help_decoding_only():
    """Memory-bound decoding halves with the weights; a prompt that is bound by arithmetic does not notice."""
    whole, bytes_only = Precision(2, 0, 0), Precision(1, 0, 0)
    assert seconds(decode(DENSE, 1000, 1, bytes_only)) == pytest.approx(
        0.5 * seconds(decode(DENSE, 1000, 1, whole)), rel=1e-3
    )
    ask = Workload(4096, 0)
    halved = dataclasses.replace(HALF, weight=1.0)
    assert seconds(prefill(DENSE, ask, halved)) == pytest.approx(seconds(prefill(DENSE, ask, HALF)), rel=0.02)


def test_all_experts_active_cost_as_a_dense_model():
    dense = Architecture(6, 256, 128, 2048, 4096)
    experts = Architecture(6, 256, 128, 512, 4096, experts=4, active=4)
    work = Workload(100, 20, 3)
    assert latency(experts, ORIN, work, HALF) == pytest.approx(latency(dense, ORIN, work, HALF), rel=1e-12)
    assert experts.activation_rate == 1
    assert experts.expansion == dense.expansion
    assert (experts.stored, experts.activated) == (dense.stored, dense.activated)
    assert memory(experts, work, HALF) == memory(dense, work, HALF)


def test_distinct_experts():
    assert distinct_experts(SPARSE, 1) == pytest.approx(2, rel=1e-12)
    assert distinct_experts(SPARSE, 2) == pytest.approx(16 * (1 - (14 / 16) ** 2), rel=1e-12)
    assert distinct_experts(SPARSE, 1e6) == pytest.approx(16, rel=1e-12)
    assert distinct_experts(DENSE, 7) == 1
    # A simulation of uniform routing: 2 of 16 a token, 8 tokens.
    generator = np.random.default_rng(0)
    woken = [len({e for _ in range(8) for e in generator.permutation(16)[:2]}) for _ in range(2000)]
    assert distinct_experts(SPARSE, 8) == pytest.approx(np.mean(woken), rel=0.01)


def test_experts_are_cheap_to_run_and_dear_to_store():
    dense = dataclasses.replace(SPARSE, expert_width=2048, experts=1, active=1)
    work = Workload(8, 64)
    assert latency(SPARSE, ORIN, work, HALF) == pytest.approx(latency(dense, ORIN, work, HALF), rel=0.1)
    assert memory(SPARSE, work, HALF) > 3 * memory(dense, work, HALF)


def test_a_workload_is_its_prompt_and_its_answer():
    work = Workload(100, 5, 2)
    steps = sum(seconds(decode(SPARSE, 100 + j, 2, HALF)) for j in range(1, 6))
    assert latency(SPARSE, ORIN, work, HALF) == pytest.approx(seconds(prefill(SPARSE, work, HALF)) + steps, rel=1e-12)
    names = [one.name for one in operators(SPARSE, Workload(100, 0), HALF)]
    assert names == ["query", "key", "value", "output", "gate", "up", "down", "router", "attention", "head"]
    started = dataclasses.replace(ORIN, launch=1e-3)
    runs = sum(one.count for one in operators(SPARSE, work, HALF))
    assert latency(SPARSE, started, work, HALF) == pytest.approx(latency(SPARSE, ORIN, work, HALF) + runs * 1e-3)


def test_sums_of_maxima_are_not_the_maximum_of_sums():
    listed = operators(DENSE, Workload(8192, 32), HALF)
    flops, moved = (
        sum(one.count * part for one, part in ((o, getattr(o, k)) for o in listed)) for k in ("flops", "bytes")
    )
    assert seconds(listed) > 1.2 * max(flops / ORIN.peak_flops, moved / ORIN.bandwidth)


def test_sizes_and_arithmetic_of_the_ladder():
    """Parameters and FLOPs of our own models, counted elsewhere in the house."""
    for shape in LADDER:
        kv = (shape.key_value_heads or shape.heads) * shape.head_size
        model = Architecture(shape.layers, shape.width, kv, shape.feed_forward, 4096, tied=shape.tied)
        tables = (1 if shape.tied else 2) * 4096 * shape.width
        assert model.stored - tables == shape.parameters
        forward = sum(one.flops * one.count for one in decode(model, 1, 1, HALF)) - 4 * shape.layers * shape.width
        # The ladder counts two operations for every number of a norm; here norms are left out.
        norms = (2 * shape.layers + 1) * shape.width
        assert forward == pytest.approx(flops_per_token(shape, 4096, 0) / 3 - 2 * norms, rel=1e-12)


def test_memory_by_hand():
    model = Architecture(2, 8, 4, 16, 10, experts=4, active=2)
    blocks = 2 * (2 * 8 * 12 + 3 * 4 * 8 * 16 + 8 * 4)
    assert model.stored == blocks + 2 * 80 + 5 * 8
    cache = 2 * 3 * 2 * 4 * (7 + 5)
    alive = 3 * (7 * 2 * (8 + 32) + 10)
    assert memory(model, Workload(7, 5, 3), Precision(4, 2, 1)) == 4 * model.stored + 2 * cache + alive


def timed(machine, noise=0.0, seed=0, prompts=(1, 64, 1024)):
    generator = np.random.default_rng(seed)
    models = [Architecture(layers, width, width, 3 * width, 4096) for layers, width in ((2, 64), (4, 256), (8, 1024))]
    works = [Workload(prompt, answer) for prompt in prompts for answer in (1, 16)]
    return [
        (m, w, latency(m, machine, w, Precision(4, 4, 4)) * math.exp(noise * generator.normal()))
        for m in models
        for w in works
    ]


def test_calibration_finds_the_machine():
    truth = Machine(4e10, 8e9, 2e-5)
    found = calibrate(timed(truth), Machine(1e11, 2e10), Precision(4, 4, 4))
    assert dataclasses.astuple(found.machine) == pytest.approx((4e10, 8e9, 2e-5), rel=1e-4)
    assert found.error < 1e-5
    noisy = calibrate(timed(truth, 0.05), Machine(1e11, 2e10), Precision(4, 4, 4))
    for name, value in dataclasses.asdict(truth).items():
        low, high = noisy.intervals[name]
        assert low < value < high
        assert high / low < 1.6
    assert noisy.error < 0.05
    two = calibrate(timed(truth), dataclasses.replace(truth, launch=1e-3), Precision(4, 4, 4), free=("launch",))
    assert two.machine.launch == pytest.approx(2e-5, rel=1e-6)
    assert two.machine.peak_flops == 4e10


def test_what_cannot_be_calibrated_is_refused():
    machine, whole = Machine(4e12, 8e9, 2e-5), Precision(4, 4, 4)
    with pytest.raises(UserError, match="peak_flops"):
        calibrate(timed(machine, prompts=(1, 2)), machine, whole)
    with pytest.raises(UserError, match="3 times cannot fit"):
        calibrate(timed(machine)[:3], machine, whole)
    with pytest.raises(UserError, match="cannot fit"):
        calibrate(timed(machine), machine, whole, free=("colour",))
    with pytest.raises(UserError, match="positive and finite"):
        calibrate([(m, w, -s) for m, w, s in timed(machine)], machine, whole)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        Architecture(0, 64, 64, 128, 100)
    with pytest.raises(UserError, match="1 to 2 experts"):
        Architecture(1, 64, 64, 128, 100, experts=2, active=3)
    with pytest.raises(UserError, match="positive"):
        Machine(0, 1e9)
    with pytest.raises(UserError, match="prompt"):
        Workload(0, 5)
