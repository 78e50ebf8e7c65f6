"""`compress` from a model to its folder: what it measures, what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from thalweg.errors import BudgetError, DataError, ModelError, RecipeError, UserError
from thalweg.models.folder import load, save
from thalweg.runs import Run
from thalweg.sessions import compress_state
from thalweg.sessions.compress import compress
from thalweg.sessions.evaluate import evaluate_folder
from thalweg.sessions.size_target import Target
from thalweg.sessions.train import train

SHORT = {"windows": 8, "tokens": 3000}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """In every test of this file."""


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A run that has learned something."""
    folder = tmp_path_factory.mktemp("compress") / "run"
    train(small("adamw+linear", budget="60 steps"), folder, quiet=True, show=False)
    return folder


@pytest.fixture(scope="module")
def chained(run, tmp_path_factory):
    """Three steps, one after the other: (what was told, folder)."""
    out = tmp_path_factory.mktemp("chained") / "small"
    told = compress(run, "wanda:sparsity=0.5+gptq:bits=4,group=32+perp:budget=4 steps", out, **SHORT)
    return told, out


def blocks_of(model):
    return {name: value for name, value in model.state_dict().items() if "proj" in name}


def test_it_tells_what_was_lost_and_gained(chained, run):
    told, out = chained
    before, after = told["before"], told["after"]
    assert json.loads((out / "compression.json").read_text()) == told
    assert after["bits_per_byte"] > before["bits_per_byte"] * 0.98
    assert before["low"] < before["bits_per_byte"] < before["high"]
    assert "agreement" not in before
    assert 0.3 < after["agreement"] < 1.0
    assert after["block_non_zero"] <= 0.51 * after["block_weights"]
    assert before["bits_per_weight"] == 32
    assert 4 < after["bits_per_weight"] <= 5
    files = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert after["disk_bytes"] == files
    assert told["ratio"] == pytest.approx(files / before["disk_bytes"])
    assert told["ratio"] < 0.9
    assert [found["step"].partition(":")[0] for found in told["found"]] == ["wanda", "gptq", "perp"]
    errors = [error for found in told["found"][:2] for block in found["blocks"] for error in block["errors"].values()]
    assert len(errors) == 2 * len(told["layers"])
    assert all(0 < error < 1 for error in errors)
    assert {layer["format"] for layer in told["layers"]} == {"int4"}
    assert all(0.48 < layer["zeros"] < 0.75 for layer in told["layers"])


def test_what_is_written_is_what_was_measured(chained, run):
    """Loaded by transformers alone, it has the zeros, and its loss is the one that was told."""
    told, out = chained
    model = AutoModelForCausalLM.from_pretrained(out)
    again = compress(run, "wanda:sparsity=0.5+gptq:bits=4,group=32+perp:budget=4 steps", out.parent / "again", **SHORT)
    for name in ("bits_per_byte", "agreement", "block_non_zero", "perplexity"):
        assert again["after"][name] == told["after"][name], name
    tokens = torch.arange(24)[None] % 50
    other = AutoModelForCausalLM.from_pretrained(out.parent / "again")
    assert torch.equal(model(input_ids=tokens).logits, other(input_ids=tokens).logits)


def test_it_is_evaluated_on_what_its_run_was(chained, run, tmp_path):
    _, out = chained
    own, small = evaluate_folder(run), evaluate_folder(out)
    assert (small.tokens, small.documents) == (own.tokens, own.documents)
    save(*load(out), tmp_path / "alone")
    for said in (None, "[]", "{}", '{"run": null}', '{"run": "/nowhere/at/all"}'):
        if said is not None:
            (tmp_path / "alone" / "compression.json").write_text(said)
        with pytest.raises(UserError, match="no held-out documents of its own") as caught:
            evaluate_folder(tmp_path / "alone")
        assert ("/nowhere/at/all" in str(caught.value)) == ("nowhere" in (said or ""))


def test_the_report_is_whole_and_escaped(chained):
    told, out = chained
    text = (out / "report.html").read_text()
    assert "gptq:bits=4,group=32" in text
    assert f"{told['after']['bits_per_byte']:.4f}" in text
    assert "<script" not in text
    assert text.count("<svg") == 1


def test_nothing_is_left_beside_the_result(chained):
    _, out = chained
    assert sorted(path.name for path in out.parent.glob("small*")) == ["small"]


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from thalweg.sessions import compress_state
from thalweg.sessions.compress import compress
real = compress_state.Work.keep_block
def slow(self, number, block, found):
    real(self, number, block, found)
    print("kept", number, block.index, flush=True)
    sys.stdin.readline()
compress_state.Work.keep_block = slow
steps = "wanda:sparsity=0.5+gptq:bits=4,group=32+perp:budget=4 steps"
compress(sys.argv[1], steps, sys.argv[2], windows=8, tokens=3000)
"""


@pytest.mark.parametrize("kill_after", ["kept 1 0", "kept 2 0"])
def test_killed_it_goes_on_block_by_block(chained, run, tmp_path, kill_after):
    """kill -9 after a block; the same call takes up what was done and ends with the same numbers."""
    told, _ = chained
    out = tmp_path / "small"
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(run), str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if line.strip() == kill_after:
            break
        child.stdin.write("\n")
        child.stdin.flush()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "small.partial").glob("*.block-*.safetensors")}
    assert kept
    seen: list[str] = []
    again = compress(
        run,
        "wanda:sparsity=0.5+gptq:bits=4,group=32+perp:budget=4 steps",
        out,
        **SHORT,
        progress=lambda text, share: seen.append(text),
    )
    for name in ("bits_per_byte", "agreement", "block_non_zero", "perplexity"):
        assert again["after"][name] == told["after"][name], name
    if kill_after.startswith("kept 2"):
        assert not any("step 1" in text for text in seen)
    assert not (tmp_path / "small.partial").exists()


def begun(tmp_path, done=True):
    """A working folder beside `small`."""
    partial = tmp_path / "small.partial"
    partial.mkdir()
    (partial / "job.json").write_text(json.dumps({"steps": ["something else"]}))
    if done:
        (partial / "step-1").mkdir()
        (partial / "step-1" / "found.json").write_text("{}")
    return partial


def test_work_of_another_job_is_neither_taken_up_nor_deleted(run, tmp_path):
    partial = begun(tmp_path)
    with pytest.raises(ModelError, match=r"unfinished work of another compression \(something else\)") as caught:
        compress(run, "magnitude:sparsity=0.3", tmp_path / "small", **SHORT)
    assert "delete the folder" in caught.value.fix
    assert (partial / "step-1" / "found.json").read_text() == "{}"


def test_a_job_that_has_done_nothing_makes_room(run, tmp_path):
    begun(tmp_path, done=False)
    told = compress(run, "magnitude:sparsity=0.3", tmp_path / "small", **SHORT)
    assert [found["step"] for found in told["found"]] == ["magnitude:sparsity=0.3"]


def test_a_folder_of_somebody_else_is_not_deleted(run, tmp_path):
    partial = tmp_path / "small.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="no compression has made"):
        compress(run, "rtn:bits=4", tmp_path / "small", **SHORT)
    assert (partial / "thesis.txt").read_text() == "precious"
    (partial / "job.json").write_text("{}")  # whoever wrote that: the thesis is not ours
    with pytest.raises(ModelError, match="no compression has made"):
        compress(run, "rtn:bits=4", tmp_path / "small", **SHORT)
    assert (partial / "thesis.txt").read_text() == "precious"


def test_two_at_once_are_one_too_many(run, tmp_path):
    """The second one, of the same job or another, is refused and leaves the first one's work alone."""
    refused = []

    def again(said, share):
        if said == "measuring the model" and not refused:
            for steps in ("wanda:sparsity=0.5", "wanda:sparsity=0.9"):
                with pytest.raises(ModelError, match="another compression is at work"):
                    compress(run, steps, tmp_path / "small", **SHORT)
                refused.append(steps)

    told = compress(run, "wanda:sparsity=0.5", tmp_path / "small", **SHORT, progress=again)
    assert len(refused) == 2
    assert all(layer["zeros"] == pytest.approx(0.5, abs=0.01) for layer in told["layers"])


def test_links_are_not_replaced(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in ("empty", "nowhere"):
        link = tmp_path / f"to {target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(ModelError, match="a link or a mounted folder"):
            compress(run, "rtn:bits=4", link, **SHORT)
        assert link.is_symlink()


class Stopped(Exception):
    """Where a test ends the work."""


def stopped_at(run, tmp_path, text, steps="wanda+gptq:group=32+perp:budget=4 steps", share=0.0):
    """The working folder that is left by a compression that ends when it says this, so far on."""

    def end(said, done):
        if text in said and done >= share:
            raise Stopped

    with pytest.raises(Stopped):
        compress(run, steps, tmp_path / "small", **SHORT, progress=end)
    return tmp_path / "small.partial"


@pytest.mark.parametrize("file", ["job.json", "step-2/fixed.safetensors", "step-2/found.json", "step-2/formats.json",
                                  "step-2/model.safetensors", "step-1/found.json"])  # fmt: skip
def test_damaged_work_says_what_to_do(run, tmp_path, file):
    partial = stopped_at(run, tmp_path, "step 3")
    path = partial / file
    whole = path.read_bytes()
    for damaged in (whole[:20], b"[1]", b"{}") if path.suffix == ".json" else (whole[:20],):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="unfinished work is damaged") as caught:
            compress(run, "wanda+gptq:group=32+perp:budget=4 steps", tmp_path / "small", **SHORT)
        assert "delete that folder" in caught.value.fix
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("damaged", [b"[]", b"{}", b'{"found": {}'])
def test_a_damaged_block_is_done_again(run, tmp_path, damaged):
    partial = stopped_at(run, tmp_path, "step 1", steps="wanda:sparsity=0.5", share=0.5)
    path = partial / "step-1.block-0000.json"
    path.write_bytes(damaged)
    told = compress(run, "wanda:sparsity=0.5", tmp_path / "small", **SHORT)
    assert all(layer["zeros"] == pytest.approx(0.5, abs=0.01) for layer in told["layers"])


def test_where_nothing_is_done_nothing_is_left(run, tmp_path):
    assert not stopped_at(run, tmp_path, "measuring the model").exists()
    assert stopped_at(run, tmp_path, "step 2").is_dir()


def test_a_full_disk_loses_nothing(run, tmp_path, monkeypatch):
    """Once a block could not be written, the same call goes on from the one before it."""
    steps = "wanda:sparsity=0.5"
    real, kept = compress_state.Work.keep_block, []

    def full(self, number, block, found):
        if block.index == 1 and not kept:
            kept.append(block.index)
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(self, number, block, found)

    monkeypatch.setattr(compress_state.Work, "keep_block", full)
    with pytest.raises(ModelError, match="the disk is full") as caught:
        compress(run, steps, tmp_path / "small", **SHORT)
    assert "goes on" in caught.value.fix
    assert (tmp_path / "small.partial" / "step-1.block-0000.json").is_file()
    assert compress(run, steps, tmp_path / "small", **SHORT)["steps"] == [steps]
    assert not (tmp_path / "small.partial").exists()


def test_another_text_is_another_job(run, corpus, tmp_path):
    """The windows that are drawn decide, not the name of the corpus."""
    stopped_at(run, tmp_path, "step 2")
    with pytest.raises(ModelError, match="of another model, text or seed"):
        compress(run, "wanda+gptq:group=32+perp:budget=4 steps", tmp_path / "small", windows=8, tokens=3000, seed=1)


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.4x", Target(share=0.4)),
        ("120MB", Target(bytes=120e6)),
        ("2 MiB", Target(bytes=2 * 2**20)),
        ("auto", Target()),
    ],
)
def test_sizes_are_read(text, target):
    assert Target.parse(text) == target


@pytest.mark.parametrize("text", ["0x", "1.5x", "small", "-3MB", "12"])
def test_sizes_that_mean_nothing(text):
    with pytest.raises(BudgetError, match="cannot read the size"):
        Target.parse(text)


def test_a_target_takes_the_gentlest_setting_that_fits(run, tmp_path):
    plain = compress(run, "rtn:bits=8,group=32", tmp_path / "eight", **SHORT)
    eight = plain["ratio"]
    wide = compress(run, "", tmp_path / "wide", target=f"{eight + 0.03:.3f}x", **SHORT)
    assert [step["step"].partition(":")[0] for step in wide["found"]] == ["gptq"]
    assert {layer["format"] for layer in wide["layers"]} == {"int8"}
    assert wide["ratio"] <= eight + 0.03
    four = compress(run, "rtn:bits=4,group=32", tmp_path / "four", **SHORT)["ratio"]
    narrow = compress(run, "rtn:group=32", tmp_path / "narrow", target=f"{four + 0.002:.4f}x", **SHORT)
    assert {layer["format"] for layer in narrow["layers"]} == {"int4"}
    assert narrow["ratio"] == pytest.approx(four, rel=1e-3)


def test_a_target_that_cannot_be_met_says_how_far_one_gets(run, tmp_path):
    with pytest.raises(BudgetError, match=r"the smallest is \d+\.\d MB"):
        compress(run, "", tmp_path / "small", target="0.01x", **SHORT)
    with pytest.raises(BudgetError, match="cannot bring"):
        compress(run, "magnitude:sparsity=0.9", tmp_path / "small", target="0.5x", **SHORT)
    with pytest.raises(BudgetError, match="cannot bring"):  # no count of the second step leaves a block
        compress(run, "llm_drop:what=block,count=1+llm_drop:what=block", tmp_path / "small", target="0.01x", **SHORT)
    with pytest.raises(BudgetError, match=r"below 0\.0010 MB"):
        compress(run, "gptq", tmp_path / "small", target="1KB", **SHORT)
    assert not (tmp_path / "small.partial").exists()


def test_a_target_says_which_layers_have_no_layout(corpus, tmp_path):
    from transformers import AutoTokenizer, GPT2Config

    from thalweg.data import prepare

    tokenizer = AutoTokenizer.from_pretrained(prepare(str(corpus), tokenizer="bpe:300").folder / "tokenizer")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=32)
    save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "gpt2")
    with pytest.raises(BudgetError, match=r"8 layers are stored as plain weights: .*Conv1D"):
        compress(tmp_path / "gpt2", "gptq", tmp_path / "small", target="0.5x", calibration=str(corpus), **SHORT)


def test_auto_prunes_as_far_as_costs_nothing(run, tmp_path):
    told = compress(run, "wanda", tmp_path / "small", target="auto", **SHORT)
    [step] = told["steps"]
    sparsity = float(step.partition("sparsity=")[2].split(",")[0])
    zeros = 1 - told["after"]["block_non_zero"] / told["after"]["block_weights"]
    assert 0 < sparsity < 1
    assert zeros == pytest.approx(sparsity, abs=0.02)
    with pytest.raises(BudgetError, match="no step leaves one open"):
        compress(run, "wanda:sparsity=0.5", tmp_path / "other", target="auto", **SHORT)


# -- bad input ----------------------------------------------------------------------------------------------------


def broken(run, tmp_path, change):
    """A copy of the run's model with a change to its tensors."""
    source = Run.open(run).checkpoints / "latest"
    model, tokenizer = load(source)
    folder = tmp_path / "model"
    save(model, tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_are_not_finite(run, corpus, tmp_path):
    def poison(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")

    folder = broken(run, tmp_path, poison)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight holds weights that are not finite"):
        compress(folder, "rtn:bits=4", tmp_path / "small", calibration=str(corpus), **SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_output_that_is_there_already(run, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "precious.txt").write_text("keep me")
    with pytest.raises(ModelError, match="exists and is not empty"):
        compress(run, "rtn:bits=4", tmp_path / "small", **SHORT)
    assert (tmp_path / "small" / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("steps", "kind", "says"),
    [
        ("adamw", RecipeError, "compresses no model"),
        ("gtpq:bits=4", RecipeError, "gptq"),
        ("gptq:bits=40", RecipeError, "40"),
        ("gptq:bits=4+sparsegpt:sparsity=0.5", ModelError, "before"),
        ("+", RecipeError, "no step"),
        ("gptq+", RecipeError, "no step follows"),
        ("wanda:pattern=5:4", RecipeError, "5:4"),
    ],
)
def test_steps_that_cannot_be(run, tmp_path, steps, kind, says):
    with pytest.raises(kind, match=says):
        compress(run, steps, tmp_path / "small", **SHORT)
    assert not (tmp_path / "small").exists()


def test_a_target_that_is_missed_is_said(run, tmp_path, monkeypatch):
    """What was predicted does not hold where an architecture turns out not to be readable packed."""
    monkeypatch.setattr("thalweg.models.compressed_tensors._unreadable", lambda folder: "no weight")
    told = compress(run, "gptq:group=32", tmp_path / "small", target="0.8x", **SHORT)
    assert told["ratio"] > 0.99
    assert any("is missed" in note for note in told["stored"]["notes"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": "gptq+gptq:bits=3"}, "gptq and gptq quantize the same weights"),
        ({"steps": "wanda+perp:budget=abc"}, "abc"),
        ({"steps": "wanda+perp:budget=0 steps"}, "0"),
        ({"steps": "rtn", "target": "1x"}, "cannot read the size '1x'"),
        ({"steps": "rtn", "windows": 0}, "0 is too few (--windows)"),
        ({"steps": "rtn", "tokens": 1}, "1 is too few (--tokens)"),
        ({"steps": "rtn", "out": "."}, "needs a folder of its own"),
        ({"steps": "rtn", "out": ""}, "needs a folder of its own"),
        ({"steps": "rtn", "out": "x" * 300}, "File name too long"),
    ],
)
def test_what_can_be_known_beforehand_is_said_before_a_model_is_read(tmp_path, options, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.sessions.compress.load", None)
    with pytest.raises(UserError) as caught:
        compress("any", **{"out": "small", **options})
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_two_of_four_can_be_asked_for(run, tmp_path):
    told = compress(run, "wanda:pattern=2:4", tmp_path / "small", **SHORT)
    assert told["steps"] == ["wanda:pattern=2:4"]
    assert all(layer["zeros"] == pytest.approx(0.5, abs=0.01) for layer in told["layers"])


def test_no_such_model_and_too_little_text(run, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        compress(tmp_path / "nowhere", "rtn:bits=4", tmp_path / "small")
    (tmp_path / "tiny.txt").write_text("a few words")
    with pytest.raises(DataError):
        compress(run, "gptq:bits=4", tmp_path / "small", calibration=str(tmp_path / "tiny.txt"), **SHORT)


def test_little_calibration_is_enough_with_more_damping(run, tmp_path):
    """One window of eight tokens: a singular Hessian, whose damping is raised, and the notes say so."""
    told = compress(run, "gptq:bits=4,group=32", tmp_path / "small", windows=1, context=8, tokens=3000)
    assert told["after"]["bits_per_byte"] < 2 * told["before"]["bits_per_byte"]
