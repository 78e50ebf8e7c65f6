from __future__ import annotations

import copy

import pytest
import torch

from thalweg.models.attention import NAME, use_fastest_attention
from thalweg.models.folder import load, save
from thalweg.models.ladder import build, nearest

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return build(nearest("0.2M"), 300, 64, 0)


def gradients(model, tokens):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    return logits.detach().float(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_agrees_with_torchs_kernel(model):
    tokens = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(1))
    plain, plain_gradient = gradients(model, tokens)
    exact = model(input_ids=tokens, use_cache=False).logits.detach()
    use_fastest_attention(model, CPU, "bfloat16", 64)
    assert model.config._attn_implementation == NAME
    fast, fast_gradient = gradients(model, tokens)
    # Both are bfloat16; ours may be no further from float32 than torch's.
    assert (fast - exact).abs().mean() < 1.2 * (plain - exact).abs().mean()
    assert torch.nn.functional.cosine_similarity(plain_gradient, fast_gradient, dim=0) > 0.9995


def test_is_causal(model):
    use_fastest_attention(model, CPU, "bfloat16", 64)
    tokens = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[0, 12:] = 7
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        one, two = (model(input_ids=t, use_cache=False).logits for t in (tokens, other))
    assert torch.equal(one[0, :12], two[0, :12])
    assert not torch.equal(one[0, 12:], two[0, 12:])


def test_float32_and_padding_take_torchs_kernel(model):
    tokens = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    reference = copy.deepcopy(model)
    use_fastest_attention(model, CPU, "bfloat16", 64)
    for arguments in ({}, {"attention_mask": mask}):
        ours = model(input_ids=tokens, use_cache=False, **arguments).logits
        assert torch.equal(ours, reference(input_ids=tokens, use_cache=False, **arguments).logits)


@pytest.mark.parametrize(("precision", "context"), [("float32", 64), ("bfloat16", 1024)])
def test_other_settings_are_left_alone(model, precision, context):
    use_fastest_attention(model, CPU, precision, context)
    assert model.config._attn_implementation == "sdpa"


def test_leaves_no_trace_on_disk(model, tmp_path):
    use_fastest_attention(model, CPU, "bfloat16", 64)
    save(model, None, tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert load(tmp_path)[0].config._attn_implementation == "sdpa"
