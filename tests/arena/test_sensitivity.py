"""A sweep over rates of a tiny model."""

from __future__ import annotations

import json

import pytest

from thalweg.arena.sensitivity import sweep
from thalweg.errors import ArenaError, RunError

SETTINGS = {"data.tokenizer": "bpe:512", "data.context": 32, "data.held_out": 0.1, "training.batch_size": 8}


def test_a_sweep(corpus, tmp_path, capsys):
    told = sweep(
        "adamw+constant",
        rates=[1e-6, 5e-3, 5.0],
        budget="12 steps",
        model="0.2M",
        corpus=str(corpus),
        settings=SETTINGS,
        jobs=1,
        out=tmp_path / "out",
        runs=tmp_path / "runs",
    )
    shown = [line for line in capsys.readouterr().err.splitlines() if "adamw+constant at" in line]
    assert [line.split(":")[0] for line in shown] == [
        f"[{number}/3] adamw+constant at {rate}, seed 0" for number, rate in enumerate(("1e-06", "0.005", "5"), 1)
    ]
    assert told.rates == [1e-6, 5e-3, 5.0]
    # Hardly any rate learns nothing, a good one learns, a wild one destroys.
    assert told.losses[0] == pytest.approx(told.initial, rel=0.02)
    assert told.losses[1] is not None
    assert told.losses[1] < told.initial - 0.3
    values = [told.initial if loss is None else min(loss, told.initial) for loss in told.losses]
    assert told.sensitivity == pytest.approx(sum(values) / 3 - min(values))
    assert json.loads((tmp_path / "out" / "sensitivity.json").read_text()) == told.to_dict()
    assert (tmp_path / "out" / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes():
    with pytest.raises(ArenaError):
        sweep("adamw", rates=[1e-3], quiet=True)
    with pytest.raises(ArenaError):
        sweep("adamw", rates=[0.0, 1e-3], quiet=True)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot make the output folder"):
        sweep("adamw", rates=[1e-3, 1e-2], out=tmp_path / "file" / "out", quiet=True)
