"""muP: the base is left alone, the table is what the sources say, and folding changes no function.

The reference is GraniteForCausalLM of transformers: Llama with a multiplier on residual branches, on attention logits
and on logits, computed as written, trained by torch's AdamW with the table's unfolded rates.
"""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from torch.nn import functional

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers.mup import RULES, Mup, parameterise
from thalweg.methods.schedules import Constant
from thalweg.models.ladder import Shape, build
from thalweg.models.parameter_groups import parameter_groups

VOCABULARY = 61
WIDE = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 2, "num_hidden_layers": 3}
BASE = {"base_width": 32, "base_feed_forward": 64, "base_head_size": 16, "base_layers": 2}
M, FF, DEPTH, HEAD = 4.0, 5.0, 1.5, math.sqrt(16 / 64)


def config_of(kind=hf.LlamaConfig, **changes):
    shared = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "num_key_value_heads": 2, "use_cache": False}
    return kind(**{**shared, **WIDE, "tie_word_embeddings": True, **changes})


def wide(kind=hf.LlamaForCausalLM, **changes):
    torch.manual_seed(0)
    return kind(config_of(kind.config_class, **changes))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (4, 16), generator=generator) for _ in range(count)]


def losses_of(model, groups, steps=6, **options):
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), **options)
    losses = []
    for batch in batches(steps):
        logits = model(input_ids=batch).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def unfolded(model, lr, weight_decay, eps, alpha):
    """The published table's groups, for a model that computes its multipliers."""
    groups = []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name
        m = FF if "down_proj" in name else M
        hidden = inside and parameter.ndim == 2
        rate = lr / m if hidden else lr
        decay = weight_decay * m if hidden else 0.0
        if inside:
            rate *= DEPTH ** (alpha - 1)
        small = eps / M * (DEPTH**-alpha if inside else 1.0)
        decay = weight_decay if name == "lm_head.weight" else decay
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay, "eps": small})
    return groups


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("tied", [True, False])
def test_folded_training_is_the_training_with_multipliers(tied, alpha):
    # Large rates and a large eps, so that a wrong factor shows within six steps.
    lr, decay, eps = 0.02, 0.5, 1e-4
    multipliers = {
        "attention_multiplier": math.sqrt(16) / 64,
        "residual_multiplier": DEPTH**-alpha,
        "logits_scaling": M,
        "embedding_multiplier": 1.0,
    }
    reference = wide(hf.GraniteForCausalLM, tie_word_embeddings=tied, **multipliers)
    ours = wide(tie_word_embeddings=tied)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            drawn = ours.get_parameter(name)
            hidden = ".layers." in name and parameter.ndim == 2
            m = FF if "down_proj" in name else M
            parameter.copy_(drawn / math.sqrt(m) if hidden else drawn)
    expected = losses_of(reference, unfolded(reference, lr, decay, eps, alpha))
    groups = parameterise(ours, lr, decay, eps, **BASE, depth_exponent=alpha)
    found = losses_of(ours, groups)
    assert found == pytest.approx(expected, rel=2e-5)
    assert abs(expected[-1] - expected[0]) > 0.02
    standard = wide(tie_word_embeddings=tied)
    assert losses_of(standard, [{"params": list(standard.parameters()), "lr": lr}]) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_the_base_itself_is_left_alone_bit_for_bit(tied):
    model = build(Shape("base", 2, 64, 2, 160), VOCABULARY, 16, seed=0, tie=tied)
    before = weights(model)
    method = Mup(base_width=64, base_layers=2, base_feed_forward=160)
    assert method.install(model) is model
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    plain = parameter_groups(model, 0.1)
    finer = method.groups(model, plain)
    assert [{**group, "eps_scale": 1.0} for group in plain] == finer


def test_what_other_parts_train_beside_the_model_stays_as_it_is():
    model = wide()
    method = Mup()
    method.install(model)
    beside = {"params": [torch.nn.Parameter(torch.ones(2))], "lr_scale": 0.3, "weight_decay": 0.0}
    kept = method.groups(model, [*parameter_groups(model, 0.1), beside])[-1]
    assert kept["params"][0] is beside["params"][0]
    assert (kept["lr_scale"], kept["eps_scale"], kept["weight_decay"]) == (0.3, 1.0, 0.0)


def rows_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }


def test_the_table_for_adam():
    model = wide(tie_word_embeddings=False)
    before = weights(model)
    method = Mup(**BASE, depth_exponent=0.5)
    rows = rows_by_name(model, method.groups(method.install(model), parameter_groups(model, 0.1)))
    fold, deep, small = DEPTH**-0.5, DEPTH**-0.5, DEPTH**-0.5 / M
    expected = {  # initial size, rate, decay, eps
        "model.embed_tokens.weight": (1, 1, 0, 1 / M),
        "lm_head.weight": (1, 1, 0.1, 1 / M),
        "model.norm.weight": (1 / M, 1 / M, 0, 1),
        "model.layers.1.self_attn.q_proj.weight": (HEAD / 2, HEAD * deep / M, 0.1 * M / HEAD, small / HEAD),
        "model.layers.1.self_attn.k_proj.weight": (1 / 2, deep / M, 0.1 * M, small),
        "model.layers.1.self_attn.o_proj.weight": (fold / 2, fold * deep / M, 0.1 * M / fold, small / fold),
        "model.layers.1.mlp.up_proj.weight": (1 / 2, deep / M, 0.1 * M, small),
        "model.layers.1.mlp.down_proj.weight": (fold / FF**0.5, fold * deep / FF, 0.1 * FF / fold, small / fold),
        "model.layers.1.input_layernorm.weight": (1, deep, 0, small),
    }
    for name, (size, lr, decay, eps) in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), before[name] * size)
        found = rows[name]
        told = [found["lr_scale"], found["weight_decay"], found["eps_scale"]]
        assert told == pytest.approx([lr, decay, eps]), name
    assert rows["model.layers.1.mlp.up_proj.weight"]["kind"] == "matrix"


def test_initial_sizes_are_those_of_the_base_over_the_root_of_the_width():
    """Of the ladder's own initialisation, which is drawn by fan-in, and of transformers', which is not."""
    small, large = (build(Shape("", 2, width, 2, 2 * width), VOCABULARY, 16, 0, tie=True) for width in (64, 256))
    Mup(base_width=64, base_head_size=0).install(large)
    for name, parameter in small.named_parameters():
        if parameter.ndim == 2:
            ratio = float(large.get_parameter(name).detach().std() / parameter.detach().std())
            assert ratio == pytest.approx(1.0 if "embed" in name else 0.5, rel=0.05), name
    assert (large.model.norm.weight == 0.25).all()


def test_rates_of_other_optimizers():
    model = wide(tie_word_embeddings=False)
    for rule, hidden, down, table, final in (
        ("muon", M**-0.5, FF**-0.5, 1.0, 1 / M),
        ("spectral", 1.0, 1.0, 1.0, 1 / M),
        ("sgd", 1.0, M / FF, M, 1 / M),
    ):
        method = Mup(base_width=32, base_feed_forward=64, base_head_size=0, rule=rule)
        rows = rows_by_name(model, method.groups(model, parameter_groups(model, 0.1)))
        names = ("layers.0.self_attn.k_proj", "layers.0.mlp.down_proj", "embed_tokens", "norm")
        found = [rows[f"model.{name}.weight"]["lr_scale"] for name in names]
        assert found == pytest.approx([hidden, down, table, final]), rule
        assert rows["lm_head.weight"]["lr_scale"] == pytest.approx(table)
        decayed = rows["model.layers.0.mlp.down_proj.weight"]
        assert decayed["lr_scale"] * decayed["weight_decay"] == pytest.approx(0.1)


def test_sgd_goes_the_way_of_explicit_multipliers():
    """Folding squares a factor in the rate where an update is proportional to its gradient."""
    reference = wide(hf.GraniteForCausalLM, logits_scaling=M, attention_multiplier=1 / 8, embedding_multiplier=1.0)
    ours = wide()
    method = Mup(base_width=32, base_head_size=0, rule="sgd")
    groups = method.groups(method.install(ours), parameter_groups(ours, 0.0))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            hidden = ".layers." in name and parameter.ndim == 2
            parameter.copy_(wide().get_parameter(name) / (2.0 if hidden else 1.0))
    theirs = [
        {"params": [p], "lr": 0.05 * (1.0 if ".layers." in name and p.ndim == 2 else M)}
        for name, p in reference.named_parameters()
    ]
    for group in groups:
        group["lr"] = 0.05 * group["lr_scale"]
    found = []
    for model, members in ((reference, theirs), (ours, groups)):
        optimizer = torch.optim.SGD(members, lr=1.0)
        for batch in batches(6):
            loss = functional.cross_entropy(model(input_ids=batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_query_norms_take_the_attention_factor_and_biases_follow_their_matrices():
    model = wide(hf.Qwen3ForCausalLM, head_dim=64)
    method = Mup(**BASE)
    rows = rows_by_name(model, method.groups(method.install(model), parameter_groups(model)))
    assert (model.model.layers[0].self_attn.q_norm.weight == HEAD).all()
    assert rows["model.layers.0.self_attn.q_norm.weight"]["lr_scale"] == pytest.approx(HEAD)
    assert rows["model.layers.0.self_attn.q_proj.weight"]["lr_scale"] == pytest.approx(1 / M)
    model = wide(hf.Qwen2ForCausalLM)
    rows = rows_by_name(model, method.groups(method.install(model), parameter_groups(model)))
    assert rows["model.layers.0.self_attn.q_proj.bias"]["lr_scale"] == pytest.approx(HEAD)
    assert rows["model.layers.0.self_attn.v_proj.bias"]["lr_scale"] == pytest.approx(1.0)


def test_coupled_decay_is_the_same_at_every_width():
    products = set()
    for width in (64, 128, 256):
        model = build(Shape("", 2, width, 2, 2 * width), VOCABULARY, 16, 0)
        groups = Mup(base_width=64).groups(model, parameter_groups(model, 0.1))
        products |= {round(group["lr_scale"] * group["weight_decay"], 12) for group in groups}
    assert products == {0.1, 0.0}


def test_a_checkpoint_is_an_ordinary_model(tmp_path):
    model = Mup(**BASE).install(wide())
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = batches(1)[0]
    assert type(again) is hf.LlamaForCausalLM
    assert torch.equal(model.eval()(input_ids=batch).logits, again.eval()(input_ids=batch).logits)


def test_the_schedulers_of_the_house_multiply_the_rates():
    model = wide()
    method = Mup(**BASE)
    groups = method.groups(method.install(model), parameter_groups(model))
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    Constant(warmup=0.0).scheduler(optimizer, 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.01 * group["lr_scale"] for group in groups]
    )
    assert len({group["lr"] for group in optimizer.param_groups}) > 3


def test_what_is_refused():
    trained = wide()
    with torch.no_grad():
        trained.model.layers[0].mlp.up_proj.weight.mul_(3.0)
    scaled = Mup(base_width=32).install(wide())
    for model in (trained, scaled):
        with pytest.raises(ModelError, match="fresh"):
            Mup(base_width=32).install(model)
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=97, n_positions=16))
    with pytest.raises(ModelError, match="Llama"):
        Mup().install(gpt2)
    small = {"head_dim": 64, "sliding_window": 8}
    with pytest.raises(ModelError, match="gains"):
        Mup(base_width=32).install(wide(hf.GemmaForCausalLM, **small))
    for options in ({"base_width": 0}, {"rule": "lion"}, {"depth_exponent": 2.0}, {"output_multiplier": 0.0}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            Mup(**options)


def test_rules_go_with_the_exponents_of_cards():
    exponents = {name: catalog.lookup(name).defaults["width_exponent"] for name in ("adamw", "muon")}
    assert [Mup.rule_of(exponents[name]) for name in ("adamw", "muon")] == ["adam", "muon"]
    assert Mup.rule_of(0.0) == "spectral"
    assert set(RULES) == set(catalog.lookup("mup").options["rule"].choices)
