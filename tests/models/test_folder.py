"""Models on disk: what is written loads anywhere, what is read is checked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from thalweg.errors import ModelError
from thalweg.models.folder import load, save
from thalweg.models.ladder import build, nearest

TOKENS = torch.arange(40).view(2, 20)


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture
def saved(tmp_path, tokenizer):
    model = build(nearest("0.2M"), 257, 32, seed=1)
    save(model, tokenizer, tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("tie", [True, False])
def test_round_trip_is_bit_for_bit(tmp_path, tokenizer, tie, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = build(nearest("0.2M"), 257, 32, seed=1, tie=tie)
    save(model, tokenizer, tmp_path)
    ours, our_tokenizer = load(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(ours), logits(model))
    assert torch.equal(logits(theirs), logits(model))
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tie
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tie
    text = "def main():\n    return 1"
    for read in (our_tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert read.eos_token_id == 256


def test_tied_weights_are_written_once(saved):
    names = load_file(saved[1] / "model.safetensors").keys()
    assert ("lm_head.weight" in names) + ("model.embed_tokens.weight" in names) == 1


def test_saved_configs_know_the_end_and_the_cache_and_the_model_is_left_alone(saved):
    model, folder = saved
    for name in ("config.json", "generation_config.json"):
        written = json.loads((folder / name).read_text())
        assert written["eos_token_id"] == 256
        assert written["use_cache"] is True
    assert model.config.eos_token_id is None
    assert model.config.use_cache is False
    assert model.generation_config.eos_token_id is None
    assert load(folder)[0].config.use_cache is False


def test_only_safe_files_are_written(saved):
    assert {path.suffix for path in saved[1].iterdir()} == {".json", ".safetensors"}


def test_without_a_tokenizer(tmp_path):
    save(build(nearest("0.2M"), 257, 32, seed=1), None, tmp_path)
    assert load(tmp_path)[1] is None


def test_weights_given_are_written_in_place_of_the_models_own(tmp_path, tokenizer):
    model, other = (build(nearest("0.2M"), 257, 32, seed=seed) for seed in (1, 2))
    save(model, tokenizer, tmp_path, state_dict=other.state_dict())
    assert torch.equal(logits(load(tmp_path)[0]), logits(other))
    assert not torch.equal(logits(model), logits(other))


def test_other_families_load_too(tmp_path):
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=257, n_positions=32)
    model = GPT2LMHeadModel(config)
    save(model, None, tmp_path)
    assert torch.equal(logits(load(tmp_path)[0]), logits(model))


def test_half_precision_loads_as_float32_unless_told(tmp_path):
    save(build(nearest("0.2M"), 257, 32, seed=1).bfloat16(), None, tmp_path)
    assert load(tmp_path)[0].dtype == torch.float32
    assert load(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_loading_leaves_the_random_state(saved):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    load(saved[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pickle_is_refused_and_not_opened(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved[1]
    (folder / "model.safetensors").unlink()
    # Would run code if anything unpickled it.
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "pickle" in caught.value.what
    assert "safetensors" in caught.value.fix
    assert not list(tmp_path.rglob("pwned"))


def damage_truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def damage_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))


def damage_config(folder):
    (folder / "config.json").write_text("{ not json")


def damage_no_config(folder):
    (folder / "config.json").unlink()


def damage_no_weights(folder):
    (folder / "model.safetensors").unlink()


def damage_family(folder):
    (folder / "config.json").write_text('{"model_type": "perpetuum"}')


def damage_own_code(folder):
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (folder / "own.py").write_text("raise SystemExit('ran')")


def damage_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def damage_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def damage_shards(folder):
    weights = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


@pytest.mark.parametrize(
    "damage",
    [function for name, function in list(globals().items()) if name.startswith("damage_")],
    ids=lambda function: function.__name__.removeprefix("damage_"),
)
def test_damaged_folders_say_so(saved, damage):
    folder = saved[1]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert str(folder) in caught.value.where
    assert caught.value.fix


def test_no_folder(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "nowhere")


def test_saving_onto_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError):
        save(build(nearest("0.2M"), 257, 32, seed=1), None, tmp_path / "file")
