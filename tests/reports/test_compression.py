"""The page of a compression: everything in it is told, and nothing foreign is more than text."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree

import pytest

from thalweg.reports import compression

HOSTILE = "<img src=x onerror=alert(1)>"


def side(bits, **more):
    return {
        "bits_per_byte": bits, "low": bits - 0.1, "high": bits + 0.1, "perplexity": 12.5, "perplexity_low": 12.0,
        "perplexity_high": 13.25, "matrix_nuclear_norm": 0.5,
        "disk_bytes": 4_000_000, "memory_bytes": 4_000_000, "parameters": 1000, "non_zero": 900,
        "bits_per_weight": 32.0, "tokens_per_second": 1234.5, "tokens": 3000, "documents": 7, **more,
    }  # fmt: skip


@pytest.fixture
def told():
    errors = [{"q_proj": 0.01, "o_proj": 0.0}, {"q_proj": 0.02, "o_proj": None}]
    blocks = [{"name": f"layers.{i}", "errors": found} for i, found in enumerate(errors)]
    layer = {"name": "layers.0.q_proj", "shape": [4, 8], "zeros": 0.5, "format": "int4", "notes": ["a fallback"]}
    return {
        "model": "runs/x", "ratio": 0.4, "seconds": 12.0,
        "before": side(2.0), "after": side(2.1, agreement=0.875, disk_bytes=1_600_000),
        "calibration": {"windows": 8, "context": 32, "seed": 0},
        "found": [{"step": "gptq:bits=4", "seconds": 3.0, "blocks": blocks}, {"step": "perp", "seconds": 1.0}],
        "layers": [layer], "stored": {"notes": ["35 layers are stored packed."]},
    }  # fmt: skip


def test_rows_have_both_sides(told):
    rows = {name: (before, after) for name, before, after in compression.rows(told)}
    assert rows["bits per byte"] == ("2.0000", "2.1000")
    assert rows["bits, 95% interval"] == ("1.9000 to 2.1000", "2.0000 to 2.2000")
    assert rows["perplexity, 95% interval"] == ("12.00 to 13.25", "12.00 to 13.25")
    assert rows["same next token"] == ("", "87.5%")
    assert rows["bytes on disk"] == ("4.00 MB", "1.60 MB")
    assert rows["of them not zero"] == ("900", "900")


def test_notes_of_layers_are_counted(told):
    told["layers"] = [{**told["layers"][0], "notes": ["often", f"once {i}"]} for i in range(4)]
    assert compression.notes_of_layers(told, most=2) == [
        "often (4 of 4 layers).",
        "once 0 (1 of 4 layers).",
        "3 other notes are in the report.",
    ]
    assert compression.notes_of_layers({"layers": []}) == []


@pytest.mark.parametrize(("documents", "says"), [(7, "of 7 documents"), (1, "one text"), (0, "one text")])
def test_the_page_says_what_intervals_are_over(told, documents, says):
    told["after"]["documents"] = documents
    assert says in " ".join(compression.page(told).split()).replace("held-out tokens of 7", "of 7")


def test_errors_are_those_that_were_measured(told):
    assert compression.errors(told) == [
        ("gptq:bits=4", [("layers.0.q_proj", 0.01), ("layers.0.o_proj", 0.0), ("layers.1.q_proj", 0.02)])
    ]


def test_the_page_tells_all_of_it(told):
    text = compression.page(told)
    for part in ("2.1000", "87.5%", "gptq:bits=4", "layers.0.q_proj", "a fallback", "35 layers are stored packed."):
        assert part in text, part
    picture = text[text.index("<svg") : text.index("</svg>") + 6]
    ElementTree.fromstring(picture)


def test_foreign_text_is_text(told):
    hostile = copy.deepcopy(told)
    hostile["model"] = hostile["layers"][0]["name"] = hostile["found"][0]["step"] = HOSTILE
    hostile["layers"][0]["notes"] = hostile["stored"]["notes"] = [HOSTILE]
    text = compression.page(hostile)
    assert "<img" not in text
    assert text.count("&lt;img") >= 5


def test_a_step_without_errors_has_no_picture(told):
    told["found"] = [{"step": "perp", "seconds": 1.0}]
    assert "<svg" not in compression.page(told)
