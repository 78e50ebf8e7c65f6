"""The pages say what cards and records say, nothing else, and their code runs."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from thalweg import catalog
from thalweg.arena import ledger, pages
from thalweg.arena.claim_drawing import curves_svg
from thalweg.arms import parse_steps
from thalweg.recipe import Recipe, parse_arm

ROOT = Path(__file__).parents[2]
CARDS = catalog.load()
FAMILIES = sorted({card.family for card in CARDS.values()})


def entry(**changes) -> dict:
    curve = {"arm": "adamw+wsd", "steps": [200.0, 600.0], "mean": [2.5, 2.0], "low": [2.4, 1.9], "high": [2.6, 2.1]}
    return {
        "date": "2026-11-21T05:00:00+00:00",
        "hash": "0",
        "verdict": "holds here",
        "sentence": "lower by 0.1 | <b>p</b>",
        "arms": [
            {"name": "adamw+cosine", "peak_lr": 0.007, "bits_per_byte": None, "verdict": "baseline"},
            {
                "name": "adamw+wsd",
                "peak_lr": 0.00712345,
                "bits_per_byte": {"mean": 2.0, "low": 1.91234, "high": 2.1},
                "verdict": "tied",
            },
        ],
        "numbers": {"speedup_steps": 1.25, "overhead": 0.034},
        "expect": "tied",
        "budget": "600 steps",
        "model": "1M",
        "corpus": "stdlib",
        "seeds": [0, 1, 2],
        "tuning": None,
        "curves": [{**curve, "arm": "adamw+cosine"}, curve],
        "seconds": 1234.5,
        "machine": {"processor": "A Processor"},
        **changes,
    }


RECORDS = {"wsd": {"name": "wsd", "history": [entry(verdict="undecided"), entry()]}}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("family", FAMILIES)
def test_page_has_every_method_and_every_option(family):
    text = pages.markdown(family, CARDS, {})
    for card in CARDS.values():
        assert (f"\n## {card.name}\n" in text) == (card.family == family)
        if card.family == family:
            section = text.split(f"\n## {card.name}\n")[1].split("\n## ")[0]
            assert all(f"| `{key}` |" in section for key in card.options)
            assert f"thalweg claim {card.name}" in section
            assert card.arxiv is None or f"https://arxiv.org/abs/{card.arxiv}" in section
            source = re.search(r"\[the file\]\((.*?)\)", section)
            assert source is not None
            assert (ROOT / "docs" / "methods" / source.group(1)).resolve().is_file()


def test_what_was_measured_is_told():
    text = pages.markdown("schedules", CARDS, RECORDS)
    section = text.split("\n## wsd\n")[1].split("\n## ")[0]
    assert "Verdict: **holds here**. lower by 0.1 \\| &lt;b&gt;p&lt;/b&gt;" in section
    assert (
        "Measured 2026-11-21 on A Processor in 1,234 s of runs: 1M parameters on `stdlib`, 600 steps, seeds 0, 1, 2"
        in section
    )
    assert "not tuned" in section
    assert "expects the last arm to be tied." in section
    assert "with 1 earlier: [results/wsd.json](../../results/wsd.json)" in section
    assert "(figures/wsd.svg)" in section
    assert "<b>" not in text
    [row] = [line for line in text.splitlines() if line.startswith("| [wsd](#wsd)")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert row.endswith("| holds here |")
    assert "Not measured yet: `thalweg claim cosine`" in text


def test_tuned_claims_and_functions_are_told_as_such():
    tuned = {"wsd": {"history": [entry(tuning={"trials": 6})]}}
    assert "each arm tuned with 6 trials" in pages.markdown("schedules", CARDS, tuned)
    found = entry(arms=[], function="cross_entropy_exact:cross_entropy_exact", curves=None, seconds=0.4)
    text = pages.markdown("objectives", CARDS, {"cross_entropy": {"history": [found]}})
    assert "`cross_entropy_exact:cross_entropy_exact`" in text
    assert "figures/" not in text


def test_only_races_have_figures_and_the_same_input_gives_the_same_bytes(tmp_path):
    one, two = (pages.write(CARDS, RECORDS, tmp_path / name) for name in ("one", "two"))
    names = [path.relative_to(tmp_path / "one").as_posix() for path in one]
    assert names == [*(f"{family}.md" for family in FAMILIES), "figures/wsd.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_committed_pages_are_what_cards_and_results_give():
    """`thalweg claims --markdown`, and commit what it writes, when this fails."""
    committed = ROOT / "docs" / "methods"
    with tempfile.TemporaryDirectory() as folder:
        written = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in pages.write(CARDS, ledger.read(ROOT / "results"), folder, ledger.comparisons(ROOT / "results"))
        }
    there = {path.relative_to(committed).as_posix(): path.read_bytes() for path in committed.rglob("*.*")}
    assert sorted(there) == sorted(written)
    assert [name for name, text in written.items() if there[name] != text] == []


def test_comparisons_stand_on_their_familys_page(tmp_path):
    (tmp_path / "compared").mkdir()
    told = runpy.run_path(str(ROOT / "tests" / "reports" / "comparison_fixture.py"))["results"](tuned=True)
    (tmp_path / "compared" / "optimizers-steps.json").write_text(json.dumps(told))
    found = ledger.comparisons(tmp_path)
    assert list(found) == ["optimizers"]
    text = pages.markdown("optimizers", CARDS, {}, found["optimizers"])
    head, table = text.split("## Compared with one another")
    assert "## How to use them" not in head
    for arm in told["workloads"][0]["arms"]:
        assert f"| `{arm['name']}` |" in table
    assert "Compared" not in pages.markdown("schedules", CARDS, {}, found.get("schedules", []))


# -- the code on the pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_commands_are_recipes_with_the_method(family):
    lines = [line for block in blocks(pages.markdown(family, CARDS, {}), "sh") for line in block.splitlines()]
    members = [card for card in CARDS.values() if card.family == family and card.slot not in catalog.OUTSIDE_ARMS]
    steps = [card for card in CARDS.values() if card.family == family and card.slot == "compression"]
    assert len(lines) == len(members) + len(steps)
    for card, line in zip(steps, lines[len(members) :], strict=True):
        words = shlex.split(line)
        assert words[:4] == ["thalweg", "compress", "runs/x", "--with"]
        assert [step.name for step in parse_steps(words[4])] == [card.name]
    for card, line in zip(members, lines, strict=False):
        words = shlex.split(line)
        assert words[:3] == ["thalweg", "train", "--arm"]
        arm = words[3]
        assert words[4:] == ["--budget", "10min"]
        assert Recipe.parse(arm, budget=words[5])
        [slot] = parse_arm(arm).items()
        assert slot[0] == card.slot


@pytest.fixture
def given(tmp_path):
    """What the pages take as given: a small model, rows, a loader, arguments of a Trainer, and a held-out batch."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 61, (12, 12), generator=generator)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=3, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    loader = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    held_out = next(iter(loader))
    return {
        "model": LlamaForCausalLM(config),
        "rows": rows,
        "loader": loader,
        "arguments": arguments,
        "held_out": held_out,
    }


CODE = [
    (family, number)
    for family in FAMILIES
    for number in range(len(blocks(pages.markdown(family, CARDS, {}), "python")))
]


@pytest.mark.parametrize(("family", "number"), CODE)
def test_code_runs_and_trains(family, number, given, capsys):
    import torch

    before = {name: value.clone() for name, value in given["model"].state_dict().items()}
    # Three steps are trained here, so what happens every hundred steps happens at each.
    code = blocks(pages.markdown(family, CARDS, {}), "python")[number].replace("% 100", "% 1")
    exec(compile(code, f"{family}.md", "exec"), given)
    after = given["model"].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(value.isfinite().all() for value in after.values())
    assert capsys.readouterr().out.count("'mnn': ") == (3 if family == "monitors" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_a_trainer_and_a_loop(family):
    code = blocks(pages.markdown(family, CARDS, {}), "python")
    assert any("Trainer(model, arguments" in block for block in code)
    assert any("in loader:" in block or "in enumerate(loader" in block for block in code)


# -- figures ------------------------------------------------------------------------------------------------------


def test_figure_has_a_line_a_band_and_a_name_for_every_arm():
    curves = entry()["curves"]
    curves[0]["arm"] = "<script>alert(1)</script>"
    tree = ElementTree.fromstring(curves_svg(curves))
    space = "{http://www.w3.org/2000/svg}"
    assert len(tree.findall(f"{space}polyline")) == len(tree.findall(f"{space}polygon")) == 2
    assert tree.find(f".//{space}script") is None
    texts = [text.text for text in tree.findall(f"{space}text")]
    assert "<script>alert(1)</script>" in texts
    assert "adamw+wsd" in texts
    assert {"0", "200", "400", "600", "1.8", "2.0", "2.6"} <= set(texts)
    # The second point is right of and below the first, and both are inside the frame.
    points = [
        tuple(map(float, point.split(","))) for point in tree.findall(f"{space}polyline")[0].get("points").split()
    ]
    assert points[0][0] < points[1][0]
    assert points[0][1] < points[1][1]
    assert all(62 <= x <= 614 and 14 <= y <= 276 for x, y in points)


@pytest.mark.parametrize("value", [0.0, 1.5, 1e-9, 123456.0])
def test_a_single_point_and_a_flat_curve_can_be_drawn(value):
    curve = {"arm": "a", "steps": [3.0], "mean": [value], "low": [value], "high": [value]}
    assert "nan" not in curves_svg([curve])
    ElementTree.fromstring(curves_svg([curve]))
