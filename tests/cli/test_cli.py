"""The command line as a user types it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thalweg.recipe import Recipe
from thalweg.runs import Run


def thalweg(*arguments: str, cwd: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done


SMALL = (
    "--model", "0.2M", "--tokenizer", "bpe:512",
    "--set", "data.context=32", "--set", "data.held_out=0.1", "--set", "training.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = thalweg(
        "train", str(corpus), "--budget", "15 steps", "--arm", "muon+wsd:decay=0.2", "-o", "runs/x", *SMALL, cwd=folder
    )
    assert "runs/x/report.html" in done.stdout
    assert "runs/x/checkpoints/latest" in done.stdout
    assert "bits per byte" in done.stderr  # the plan, before a second is spent
    return folder / "runs" / "x"


def test_file_arm_and_python_write_the_same_recipe(run, tmp_path, corpus):
    import thalweg as package

    said = Recipe.parse(
        "wsd:decay=0.2+muon",
        budget="15 steps",
        model="0.2M",
        data={"corpus": str(corpus), "tokenizer": "bpe:512", "context": 32, "held_out": 0.1},
        training={"batch_size": 8},
    )
    result = package.train(said, tmp_path / "python", quiet=True)
    thalweg("train", str(run / "recipe.toml"), "--out", str(tmp_path / "file"))
    texts = {(folder / "recipe.toml").read_text() for folder in (run, result.folder, tmp_path / "file")}
    assert len(texts) == 1
    curves = [[line["loss"] for line in Run.open(f).metrics("step")] for f in (run, result.folder, tmp_path / "file")]
    assert curves[0] == curves[1] == curves[2]


def test_generate_is_seeded(run):
    first = thalweg("generate", str(run), "the valley", "--tokens", "12").stdout
    assert first.startswith("the valley")
    assert thalweg("generate", str(run), "the valley", "--tokens", "12").stdout == first
    assert thalweg("generate", str(run), "the valley", "--tokens", "12", "--seed", "5").stdout != first


def test_eval_agrees_with_the_run(run, tmp_path):
    found = json.loads(thalweg("eval", str(run), "--json").stdout)
    last = list(Run.open(run).metrics("evaluation"))[-1]
    # The run evaluates in bfloat16 where that pays, eval in float32.
    assert found["bits_per_byte"] == pytest.approx(last["held_out_bits_per_byte"], rel=0.02)
    assert found["low"] < found["bits_per_byte"] < found["high"]
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f"The stone bends under the old bridge, {name} times.\n" * 20)
    other = thalweg("eval", str(run), str(tmp_path))
    assert "bits per byte" in other.stdout
    assert "3 documents" in other.stdout


def test_a_model_folder_needs_a_corpus(run):
    done = thalweg("eval", str(run / "checkpoints" / "latest"), code=2)
    assert "no held-out documents" in done.stderr


def test_report_again(run):
    (run / "report.html").unlink()
    assert "report.html" in thalweg("report", str(run)).stdout
    assert (run / "report.html").stat().st_size > 100_000


def test_plan_is_a_dry_run(tmp_path, corpus):
    plan = thalweg("plan", str(corpus), "--budget", "40 steps", *SMALL, "-o", "p.json", cwd=tmp_path)
    dry = thalweg("train", str(corpus), "--budget", "40 steps", *SMALL, "--dry-run", cwd=tmp_path)
    assert plan.stderr.splitlines()[-1].split(" at ")[0] == dry.stderr.splitlines()[-1].split(" at ")[0]
    chosen = json.loads((tmp_path / "p.json").read_text())["chosen"]
    assert (chosen["model"], chosen["context"], chosen["batch_size"], chosen["steps"]) == ("0.2M", 32, 8, 40)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--budget", "soon"], "cannot read the budget 'soon'"),
        (["train", "--arm", "muonn"], "Did you mean muon"),
        (["train", "missing/"], "missing"),
        (["train", "none.toml"], "cannot read the recipe"),
        (["train", "--set", "training.clipp=1"], "Did you mean clip?"),
        (["train", "--set", "nonsense"], "--set training.clip=0.5"),
        (["train", "--set", "seed.x=1"], "seed"),
        (["train", "--model", "5 apples", "--budget", "3 steps"], "5 apples"),
        (["train", "--resume", "nowhere"], "no run folder"),
        (["train", "--resume", "nowhere", "--seed", "3"], "takes everything from the run"),
        (["train", "--memory", "lots", "--budget", "3 steps"], "8GB"),
        (["eval", "nowhere"], "nowhere"),
        (["generate", "nowhere", "x"], "nowhere"),
        (["report", "nowhere"], "no run folder"),
        (["methods", "wds"], "Did you mean wsd?"),
        (["methods", "--family", "schedule"], "Did you mean schedules?"),
    ],
)
def test_mistakes_end_in_two_lines_and_status_two(tmp_path, arguments, says):
    done = thalweg(*arguments, cwd=tmp_path, code=2)
    assert says in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "  try:"))]
    assert 1 <= len(lines) <= 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", [[], ["train"], ["plan"], ["eval"], ["generate"], ["report"], ["methods"]])
def test_help_shows_examples(verb):
    text = thalweg(*verb, "--help").stdout
    assert "thalweg " + (verb[0] if verb else "train") in text


def test_methods_shows_options():
    text = thalweg("methods", "wsd").stdout
    assert "decay = 0.2" in text
    assert "2404.06395" in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_loses_nothing(tmp_path, corpus, number, code):
    started = subprocess.Popen(
        [sys.executable, "-m", "thalweg", "train", str(corpus), "--budget", "100000 steps", "-o", "run", *SMALL,
         "--set", "training.peak_lr=0.005"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_steps(tmp_path / "run", 5)
    os.kill(started.pid, number)
    out, err = started.communicate(timeout=60)
    assert started.returncode == code, err
    assert "thalweg train --resume run" in out
    last = list(Run.open(tmp_path / "run").metrics("step"))[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == f"step-{last:08d}"


def wait_for_steps(folder: Path, steps: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count('"event": "step"') >= steps:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def test_kill_nine_costs_only_the_steps_since_the_checkpoint(tmp_path, small):
    recipe = small(budget="60 steps", training__checkpoint_every="10 steps")
    (tmp_path / "recipe.toml").write_text(recipe.toml())
    whole = thalweg("train", "recipe.toml", "-o", "whole", cwd=tmp_path)
    assert "Report" in whole.stdout
    started = subprocess.Popen(
        [sys.executable, "-m", "thalweg", "train", "recipe.toml", "-o", "killed"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_steps(tmp_path / "killed", 23)
    started.kill()
    started.wait()
    reached = len(list(Run.open(tmp_path / "killed").metrics("step")))
    assert reached < 60
    thalweg("train", "--resume", "killed", cwd=tmp_path)
    lines = list(Run.open(tmp_path / "killed").metrics())
    resumed = next(line for line in lines if line["event"] == "resume")
    assert reached - resumed["step"] <= 11
    one, other = ([(x["step"], x["loss"]) for x in Run.open(tmp_path / n).metrics("step")] for n in ("whole", "killed"))
    assert one == other
    path = Path("checkpoints") / "latest" / "model.safetensors"
    assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes()


# -- compress -----------------------------------------------------------------------------------------------------


def test_compress_says_what_it_cost(run, tmp_path, corpus):
    done = thalweg(
        "compress", str(run), "--with", "rtn:bits=4,group=32", "-o", "small", "--windows", "4", "--tokens", "2000",
        cwd=tmp_path,
    )  # fmt: skip
    words = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in done.stdout.splitlines() if "  " in line}
    assert float(words["bits per byte"][0]) > 0
    assert "same next token" in done.stdout
    assert "pack-quantized: 4-bit integers" in done.stdout
    assert "step 1 of 1: rtn:bits=4,group=32" in done.stderr
    told = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert told["ratio"] < 1
    assert "bits per byte" in thalweg("eval", "small", str(corpus), cwd=tmp_path).stdout
    again = thalweg("compress", str(run), "--with", "rtn:bits=4", "-o", "small", cwd=tmp_path, code=2)
    assert "exists and is not empty" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 2
    text = thalweg("compress", "--help").stdout
    assert "--target 0.4x" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "neither steps nor a size"),
        (("--with", "muon"), "compresses no model"),
        (("--with", "gptq:bits=4", "--target", "huge"), "cannot read the size"),
        (("--with", "gptq:bits=4", "--context", "4096"), "do not fit a model"),
    ],
)
def test_compress_says_what_is_wrong(run, tmp_path, arguments, says):
    done = thalweg("compress", str(run), *arguments, "-o", "small", cwd=tmp_path, code=2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    assert not (tmp_path / "small").exists()


def test_an_interrupted_compression_goes_on(run, tmp_path):
    command = ["compress", str(run), "--with", "gptq:bits=4,group=32+perp:budget=100000 steps", "-o", "small",
               "--windows", "8", "--tokens", "2000"]  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-m", "thalweg", *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "small.partial" / "step-1" / "found.json").exists():
            assert time.monotonic() < deadline, "the compression did not get going"
            time.sleep(0.05)
        os.kill(started.pid, signal.SIGINT)
        _, err = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130, err
    assert "the same command goes on from there" in err
    assert not (tmp_path / "small").exists()
    assert (tmp_path / "small.partial" / "step-1" / "model.safetensors").is_file()


def test_an_interruption_that_was_dealt_with_does_not_end_the_process_by_the_signal(tmp_path):
    """CPython does so where it came amid the `exec` of a text, such as the making of a dataclass."""
    (tmp_path / "probe.py").write_text("""
import sys
from thalweg import cli
from thalweg.cli import app

def interrupted():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        sys.exit(130)

app.app = interrupted
cli.main()
""")
    assert subprocess.run([sys.executable, "-m", "probe"], cwd=tmp_path, check=False).returncode == 130


def test_an_interruption_that_was_swallowed_is_raised_again():
    from thalweg.cli.compress import _interruptible, _progress

    before = signal.getsignal(signal.SIGINT)
    with _interruptible() as check, _progress(False, check) as progress:
        progress("working", 0.0)
        with pytest.raises(KeyboardInterrupt):  # some library's import may catch it like this
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress("working", 0.5)
    assert signal.getsignal(signal.SIGINT) is before
