"""Compiling: tried where it may pay, believed when measured."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import MachineError
from thalweg.planner import compiling, rules


@pytest.mark.parametrize(("gain", "lasting", "expected"), [(1.5, 30, True), (1.01, 100, False), (0.8, 1, False)])
def test_compiling_must_pay_back(made_up, monkeypatch, gain, lasting, expected):
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    watch = made_up.stopwatch(gain=gain, compiling=lasting)
    plan = made_up.plan(budget="1h", measure=watch)
    assert plan["chosen"]["compile"] is expected
    assert watch.timed[-1] == f"{plan['chosen']['model']}+compiled"
    assert "s to compile" in plan["reasons"]["compile"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"budget": "2min"}, "not worth trying"),
        ({"budget": "1e17 flops"}, "whatever this machine"),
        ({"budget": "1h", "training": {"compile": "off"}}, rules.AS_SAID),
    ],
)
def test_compiling_is_not_even_tried(made_up, fields, says):
    watch = made_up.stopwatch()
    plan = made_up.plan(measure=watch, **fields)
    assert plan["chosen"]["compile"] is False
    assert says in plan["reasons"]["compile"]
    assert not [name for name in watch.timed if "compiled" in name]


def test_a_compiler_that_fails_is_no_reason_to_fail(made_up, monkeypatch):
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    plan = made_up.plan(budget="1h", measure=made_up.stopwatch(gain=0))
    assert plan["chosen"]["compile"] is False
    assert "AssertionError" in plan["reasons"]["compile"]


def test_without_a_compiler(made_up, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    watch = made_up.stopwatch()
    plan = made_up.plan(budget="1h", measure=watch)
    assert plan["reasons"]["compile"] == "off: there is no C++ compiler here"
    assert not [name for name in watch.timed if "compiled" in name]
    with pytest.raises(MachineError, match=r"C\+\+ compiler"):
        made_up.plan(budget="1h", training={"compile": "on"})
    (tmp_path / "my-compiler").touch(mode=0o755)
    monkeypatch.setenv("CXX", "my-compiler -pipe")
    assert made_up.plan(budget="12 steps", training={"compile": "on"})["chosen"]["compile"] is True
    assert compiling.has_compiler(torch.device("cuda"))
