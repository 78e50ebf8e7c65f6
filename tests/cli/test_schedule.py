"""`thalweg schedule plot` as it is typed."""

from __future__ import annotations

import subprocess
import sys

import pytest


def thalweg(*arguments, cwd, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", "schedule", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done


def test_plot_draws_here_and_as_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    done = thalweg("plot", "uba:phi=5", "cosine", "wsd:decay=0.3", "--budget", "200 steps", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) == 72
    assert "* uba:phi=5.0   o cosine   + wsd:decay=0.3" in lines
    assert lines[-1] == "Written to schedules.png"
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plot", "muon"], "'muon' is not one schedule"),
        (["plot", "cosin"], "Did you mean cosine?"),
        (["plot", "uba", "-o", "a.bmp"], "End the name in .png or .svg."),
        (["plot", "uba", "--budget", "soon"], "cannot read the budget 'soon'"),
        (["plot", "power", "--budget", "1h"], "which a budget of 1h does not tell"),
    ],
)
def test_mistakes_end_in_two_lines_and_write_nothing(tmp_path, arguments, says):
    done = thalweg(*arguments, cwd=tmp_path, code=2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["plot", "--help"]])
def test_help(tmp_path, arguments):
    text = thalweg(*arguments, cwd=tmp_path).stdout
    assert "thalweg schedule plot" in " ".join(text.split())
