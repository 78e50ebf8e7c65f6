"""Bits per byte against a plain computation, and an interval that means something."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers as hf
from torch.nn import functional

from thalweg.errors import DataError
from thalweg.models import evaluate as module
from thalweg.models.evaluate import evaluate
from thalweg.models.ladder import build, nearest

CONTEXT = 16


@pytest.fixture(scope="module")
def model():
    return build(nearest("0.2M"), 257, 64, seed=1)


def plain(model, tokens, context):
    """Nats of tokens 1.. by windows, one at a time, by the model's own full logits."""
    nats = []
    for start in range(0, len(tokens) - 1, context):
        window = torch.tensor(tokens[start : start + context + 1])
        with torch.no_grad():
            logits = model.eval()(window[None, :-1]).logits[0]
        nats += functional.cross_entropy(logits, window[1:], reduction="none").tolist()
    return np.array(nats)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_token_once_and_documents_get_their_own(model, array_split, batch_size):
    split = array_split([10, 50, 33, 3, 120])
    nats = plain(model, split.tokens, CONTEXT)
    found = evaluate(model, split, CONTEXT, batch_size)
    assert found.tokens == 215
    assert found.documents == 5
    assert found.loss == pytest.approx(nats.mean(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / split.bytes.sum(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    assert split.most_read <= batch_size * CONTEXT + 1


def test_a_document_cut_by_the_limit_is_dropped(model, array_split):
    split = array_split([10, 50, 33, 3, 120])
    nats = plain(model, split.tokens[:93], CONTEXT)
    found = evaluate(model, split, CONTEXT, 2, max_tokens=95)
    assert (found.tokens, found.documents) == (92, 3)
    assert found.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / (9 + 49 + 32), rel=1e-5)


def test_one_long_document_is_measured_by_windows(model, array_split):
    split = array_split([400])
    found = evaluate(model, split, CONTEXT, 4, max_tokens=200)
    nats = plain(model, split.tokens[:200], CONTEXT)
    assert (found.tokens, found.documents) == (199, 0)
    assert found.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / (399 * 200 / 400), rel=1e-5)
    assert found.low < found.bits_per_byte < found.high


def test_a_uniform_model_costs_the_log_of_its_vocabulary(model, array_split):
    flat = build(nearest("0.2M"), 256, 64, seed=1)
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    found = evaluate(flat, array_split([101] * 20, vocabulary=256), CONTEXT, 4)
    assert found.loss == pytest.approx(math.log(256), rel=1e-6)
    # 8 bits for each of 101 tokens over 100 bytes, but for the very first token, which nothing predicts.
    assert found.bits_per_byte == pytest.approx(8 * (2020 - 1) / 2000, rel=1e-6)


@pytest.mark.parametrize("pieces", [257 * 5, 1 << 22])
def test_pieces_of_logits_change_nothing(model, array_split, pieces, monkeypatch):
    split = array_split([10, 50, 33, 3, 120])
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", pieces)
    seen = []
    inner = module.nats_of
    monkeypatch.setattr(
        module, "nats_of", lambda logits, targets: seen.append(logits.numel()) or inner(logits, targets)
    )
    found = evaluate(model, split, CONTEXT, 8)
    assert max(seen) <= pieces
    assert found.loss == pytest.approx(plain(model, split.tokens, CONTEXT).mean(), rel=1e-5)


def test_models_with_capped_logits_go_by_their_own(array_split):
    config = hf.Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=257, head_dim=16, final_logit_softcapping=0.5,
    )  # fmt: skip
    capped = hf.Gemma2ForCausalLM(config)
    split = array_split([40, 30, 50])
    found = evaluate(capped, split, CONTEXT, 3)
    assert found.loss == pytest.approx(plain(capped, split.tokens, CONTEXT).mean(), rel=1e-5)


def test_half_precision_is_close(model, array_split):
    split = array_split([100, 100])
    full, half = (evaluate(model, split, CONTEXT, 4, autocast=dtype) for dtype in (None, torch.bfloat16))
    assert half.loss == pytest.approx(full.loss, rel=0.01)
    assert half.loss != full.loss


def test_the_run_does_not_notice(model, array_split):
    model.train()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state()
    mark = np.random.get_state()[1].copy()
    evaluate(model, array_split([50, 50]), CONTEXT, 2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], mark)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_interval_is_reproducible_and_seeded(model, array_split):
    split = array_split([20] * 30)
    first, second, other = (evaluate(model, split, CONTEXT, 8, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < first.bits_per_byte < first.high
    assert first.perplexity_low < first.perplexity < first.perplexity_high


def test_perplexity_has_the_interval_of_the_loss(model, array_split):
    """Documents of equal length: bits per byte and nats a token are the same draw in two units."""
    split = array_split([20] * 30)
    found = evaluate(model, split, CONTEXT, 8)
    ends = [math.log(end) for end in (found.perplexity_low, found.perplexity_high)]
    # The first token of all is not predicted: 599 tokens cost what 570 bytes do.
    assert ends == pytest.approx([end * math.log(2) * 570 / 599 for end in (found.low, found.high)], rel=2e-3)


@pytest.mark.parametrize("count", [50, 6000])
def test_interval_covers_the_truth_as_often_as_it_says(count):
    """Documents of random length whose cost a byte is 2 bits on average, 0.5 from one document to the next."""
    inside, widths = 0, []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(50, 150, count).astype(float)
        nats = sizes * generator.normal(2.0, 0.5, count) * math.log(2)
        [(low, high)] = module._intervals(nats, [sizes * math.log(2)], seed=0)
        inside += low <= 2.0 <= high
        widths.append(high - low)
    assert 52 <= inside <= 60
    # 2 * 1.96 standard errors; uneven sizes make the effective number of documents a little smaller.
    assert np.mean(widths) == pytest.approx(3.92 * 0.5 * math.sqrt(1.083 / count), rel=0.1)


@pytest.mark.parametrize(
    ("lengths", "context", "batch_size", "limit"),
    [([1], 16, 1, None), ([30], 0, 1, None), ([30], 16, 0, None), ([30], 16, 1, 1)],
)
def test_nothing_to_evaluate(model, array_split, lengths, context, batch_size, limit):
    with pytest.raises(DataError):
        evaluate(model, array_split(lengths), context, batch_size, max_tokens=limit)


def test_empty_documents_are_no_corpus(model, array_split):
    with pytest.raises(DataError, match="empty"):
        evaluate(model, array_split([1] * 30), CONTEXT, 2)
