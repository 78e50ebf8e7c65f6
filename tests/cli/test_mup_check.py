"""`thalweg mup-check`, from the command line to the files."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from thalweg.cli.app import app


def test_table_verdict_and_files(tmp_path):
    out = tmp_path / "check"
    arguments = ["mup-check", "--widths", "64,32", "--steps", "1", "--seeds", "1", "--out", str(out)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((out / "mup-check.json").read_text(encoding="utf-8"))
    assert found["widths"] == [32, 64]
    # AdamW's rate at width 128 is 0.007.
    assert found["rate"] == 0.028
    assert "muP: mean change after 1 steps at peak rate 0.028" in result.output
    assert f"width^{found['growth']['mup']['logits']:.2f}" in result.output
    assert found["verdict"] in result.output
    assert {path.name for path in out.iterdir()} == {"mup-check.json", "mup-check.png"}
