"""`thalweg claim` and `thalweg claims`: which claims are meant, what is printed, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from thalweg import catalog
from thalweg.arena import ledger
from thalweg.cli import claim, claims
from thalweg.errors import ArenaError, RecipeError, TrainingError, UserError

COUNT = len(catalog.load())
FAILING = "muon"
STOPPING = "linear"


def app_of(verb) -> typer.Typer:
    app = typer.Typer()
    app.command(verb.NAME, epilog=verb.EXAMPLES)(verb.run)
    return app


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Runs a verb in an empty folder with measurements that take no time; one method fails, one is interrupted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def measure(card, **execution):
        assert execution == {"quiet": False}
        if card.name == FAILING:
            raise TrainingError("it diverged", where="step 7", fix="Lower the rate.")
        if card.name == STOPPING:
            raise KeyboardInterrupt
        return {
            "date": "2026-11-21T05:00:00+00:00", "hash": ledger.hashes(card)["both"], "verdict": "holds here",
            "sentence": f"[bold] {card.name} was measured", "seconds": 1234.0, "arms": [], "function": "a:b",
        }  # fmt: skip

    monkeypatch.setattr(ledger, "measure", measure)

    def run(verb, *arguments: str):
        return CliRunner().invoke(app_of(verb), list(arguments))

    return run


def test_claims_by_name_end_in_a_table(typed, tmp_path):
    done = typed(claim, "wsd", "cosine")
    assert done.exit_code == 0
    budget = catalog.lookup("wsd").claim["budget"]
    assert f"Claim 1 of 2: wsd (adamw+cosine, adamw+wsd; {budget})" in done.stderr
    assert "Claim 2 of 2: cosine" in done.stderr
    rows = [line for line in done.stdout.splitlines() if "holds here" in line]
    assert len(rows) == 2
    assert "[bold] wsd was measured" in rows[0]
    assert "results/wsd.json" in rows[0]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["cosine.json", "wsd.json"]


def test_one_that_fails_is_told_at_the_end_and_the_others_go_on(typed, tmp_path):
    done = typed(claim, FAILING, "wsd")
    assert done.exit_code == 2
    assert "results/wsd.json" in done.stdout
    assert "error: muon: it diverged [step 7]\n  try: Lower the rate.\n" in done.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["wsd.json"]


def test_ctrl_c_keeps_what_ended_before(typed, tmp_path):
    done = typed(claim, "wsd", STOPPING, "cosine")
    assert done.exit_code == 130
    assert "results/wsd.json" in done.stdout
    assert "cosine" not in done.stdout.replace("adamw+cosine", "")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["wsd.json"]


def test_family_all_and_stale(typed, tmp_path):
    done = typed(claim, "--family", "schedules", "--out", "elsewhere")
    schedules = sum(card.family == "schedules" for card in catalog.load().values())
    assert f" of {schedules}: constant (" in done.stderr
    assert "Claim 1 of" in typed(claim, "--all").stderr
    assert f"of {COUNT}:" in typed(claim, "--all").stderr
    typed(claim, "wsd", "cosine", "constant")
    # Two are current; the damaged record of a third counts as stale and is reported.
    (tmp_path / "results" / "constant.json").write_text("{")
    told = typed(claim, "--family", "schedules", "--stale").stderr
    assert ": constant (" in told
    assert ": linear (" in told
    assert ": wsd (" not in told
    assert typed(claim, "wsd", "--stale").stdout.startswith("Nothing is stale")
    record = json.loads((tmp_path / "results" / "wsd.json").read_text())
    record["history"][-1]["hash"] = "another"
    (tmp_path / "results" / "wsd.json").write_text(json.dumps(record))
    assert "Claim 1 of 1: wsd" in typed(claim, "wsd", "--stale").stderr
    assert "Claim 1 of" in typed(claim, "--stale").stderr


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ([], ArenaError, "no claim is named"),
        (["wsd", "--all"], ArenaError, "in one way"),
        (["--family", "schedules", "--all"], ArenaError, "in one way"),
        (["wds"], RecipeError, "Did you mean wsd"),
        (["--family", "schedule"], ArenaError, "Did you mean schedules"),
    ],
)
def test_mistakes(typed, tmp_path, arguments, error, says):
    done = typed(claim, *arguments)
    assert isinstance(done.exception, error)
    assert says in str(done.exception)
    assert not (tmp_path / "results").exists()


def test_the_ledger_as_a_table(typed, tmp_path):
    typed(claim, "wsd", "cosine")
    record = json.loads((tmp_path / "results" / "cosine.json").read_text())
    record["history"][-1] |= {"verdict": "does not hold here", "hash": "another"}
    (tmp_path / "results" / "cosine.json").write_text(json.dumps(record))
    shown = typed(claims).stdout
    assert all(column in shown for column in ("method", "the paper's claim", "measured", "verdict", "cost"))
    words = " ".join(shown.split())
    assert all(name in shown for name in catalog.load())
    assert "1,234 s" in words
    assert "[bold]" in words
    assert words.count("stale") == 1
    assert words.count("not measured") == COUNT - 2


def test_pages_are_written_where_one_says(typed, tmp_path):
    typed(claim, "wsd")
    done = typed(claims, "--markdown", "--docs", "pages")
    assert done.exit_code == 0
    assert "pages/schedules.md" in done.stdout.split()
    assert "Verdict: **holds here**" in (tmp_path / "pages" / "schedules.md").read_text()
    assert typed(claims, "--markdown").exit_code == 0
    assert (tmp_path / "docs" / "methods" / "schedules.md").read_bytes() == (
        tmp_path / "pages" / "schedules.md"
    ).read_bytes()
    assert isinstance(typed(claims, "--docs", "pages").exception, UserError)


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_the_ledger_imports_nothing_heavy(tmp_path, arguments):
    code = f"""
import sys, typer
from thalweg.cli import claims
app = typer.Typer()
app.command()(claims.run)
app({arguments!r}, standalone_mode=False)
found = {{'torch', 'transformers', 'numpy', 'scipy', 'plotly', 'matplotlib'}} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
