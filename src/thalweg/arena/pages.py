"""The pages of the methods: what each is, how to use it, and what came out when its claim was put to the test.

One page a family, written from the cards, the records in `results/` and the family's `usage.md`, and from nothing else:
the same cards and records give the same bytes, so a page that was edited by hand or not written again is found out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from thalweg import catalog
from thalweg.arena.claim_drawing import curves_svg
from thalweg.catalog import METHODS, Card
from thalweg.errors import ArenaError
from thalweg.runs import write_text

DOCS = Path("docs/methods")
NOTE = "<!-- Written by `thalweg claims --markdown` from the cards, results/ and usage.md. Change those, not this. -->"
GIVEN = (
    "Below, `model` is a Hugging Face causal language model, `loader` gives batches with `input_ids` and `labels`,\n"
    "`rows` is a dataset of such rows and `arguments` a `TrainingArguments`."
)

Record = Mapping[str, Any]


def write(
    cards: Mapping[str, Card],
    records: Mapping[str, Record],
    docs: str | Path = DOCS,
    comparisons: Mapping[str, Sequence[Record]] | None = None,
) -> list[Path]:
    """Write a page for every family, and a figure for every race; gives back the paths.

    Args:
        comparisons: by family, as `ledger.comparisons` gives them.

    Raises:
        ArenaError: the folder cannot be written.
    """
    folder = Path(docs)
    families, compared = sorted({card.family for card in cards.values()}), comparisons or {}
    files = {f"{family}.md": markdown(family, cards, records, compared.get(family, [])) for family in families}
    files |= {f"figures/{name}.svg": curves_svg(curves) for name in cards if (curves := _curves(records.get(name)))}
    try:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)
    except OSError as error:
        raise ArenaError(f"cannot write the pages: {error.strerror}", where=str(folder)) from None
    return [folder / name for name in files]


def markdown(
    family: str, cards: Mapping[str, Card], records: Mapping[str, Record], comparisons: Sequence[Record] = ()
) -> str:
    """The page of one family.

    Args:
        family: such as "schedules".
        cards: of the whole catalogue, by name.
        records: of the ledger, by name; a method without one is shown as not measured.
        comparisons: what results.json of comparisons between its members holds.
    """
    members = [card for card in cards.values() if card.family == family]
    folder = METHODS / family
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    rows = [_ledger_row(card, records.get(card.name)) for card in members]
    parts = [
        NOTE,
        f"# {family.capitalize()}",
        about,
        "\n".join(["| method | the paper's claim | measured | verdict |", "|---|---|---|---|", *rows]),
        *_compared(comparisons),
        "## How to use them",
        _in_our_trainer(members),
        GIVEN,
        (folder / "usage.md").read_text(encoding="utf-8").strip(),
        *(part for card in members for part in _method(card, records.get(card.name))),
    ]
    return "\n\n".join(parts) + "\n"


def _compared(comparisons: Sequence[Record]) -> list[str]:
    if not comparisons:
        return []
    # Here, since what makes tables of comparisons also makes figures of them.
    from thalweg.reports import comparison_table

    return ["## Compared with one another", *(comparison_table.brief(dict(results)) for results in comparisons)]


def _in_our_trainer(members: list[Card]) -> str:
    """The commands that use them: as parts of an arm, and as steps of a compression."""
    in_arms = [card for card in members if card.slot not in catalog.OUTSIDE_ARMS]
    trained = "\n".join(f'thalweg train --arm "{_spelled(card)}" --budget 10min' for card in in_arms)
    steps = [card for card in members if card.slot == "compression"]
    made = "\n".join(f'thalweg compress runs/x --with "{_spelled(card)}" -o small/{card.name}' for card in steps)
    parts = [f"In Thalweg's trainer, as a part of an arm:\n\n```sh\n{trained}\n```"] if trained else []
    parts += [f"On a trained model, as a step of a compression:\n\n```sh\n{made}\n```"] if made else []
    return "\n\n".join(parts)


def _spelled(card: Card) -> str:
    """The method with one option, so that one sees how an option is written."""
    # A switch says little, and an empty text cannot be written in an arm.
    options = [
        (key, option.default)
        for key, option in card.options.items()
        if not isinstance(option.default, bool) and option.default != ""
    ]
    searched = [(key, value) for key, value in options if card.options[key].search]
    if not options:
        return card.name
    key, value = (searched or options)[0]
    return f"{card.name}:{key}={value}"


def _method(card: Card, record: Record | None) -> list[str]:
    """The section of one method."""
    parts = [f"## {card.name}", _text(card.idea), _source(card), f"The paper says: {_text(card.paper_claim)}"]
    if card.options:
        rows = [
            f"| `{key}` | `{str(option.default).lower() if isinstance(option.default, bool) else option.default}` "
            f"| {_text(option.allowed())} | {_text(option.help)} |"
            for key, option in card.options.items()
        ]
        parts.append("\n".join(["| option | default | may be | meaning |", "|---|---|---|---|", *rows]))
    parts.append(f"What to expect: {_text(card.cost)}")
    return [*parts, *_measured(card, record)]


def _source(card: Card) -> str:
    title = f"*{_text(card.title)}*" if card.title else "common practice"
    arxiv = f", [arXiv:{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else ""
    path = f"../../src/thalweg/methods/{card.family}/{card.object.split(':')[0].replace('.', '/')}.py"
    return f"Source: {title} ({card.year}){arxiv}. The equation is at the head of [the file]({path})."


def _measured(card: Card, record: Record | None) -> list[str]:
    """What the ledger holds of a method: verdict, sentence, setting, figure."""
    if record is None:
        return [f"Not measured yet: `thalweg claim {card.name}` does it."]
    newest = record["history"][-1]
    parts = [f"Verdict: **{_text(newest['verdict'])}**. {_text(newest['sentence'])}"]
    if newest["arms"]:
        parts.append(_arms(newest))
    parts.append(_setting(card, record))
    curves = _curves(record)
    if curves:
        over = "mean over seeds; the band is from the lowest to the highest"
        parts.append(f"![Held-out bits per byte of {len(curves)} arms over steps](figures/{card.name}.svg)")
        parts.append(f"Held-out bits per byte over steps, {over}.")
    return parts


def _arms(newest: Record) -> str:
    """The arms of a race and what the last one costs."""
    rows = []
    for arm in newest["arms"]:
        bits = arm["bits_per_byte"] or {"mean": None, "low": None}
        mean = "failed" if bits["mean"] is None else f"{bits['mean']:.4f}"
        interval = "" if bits["low"] is None else f"{bits['low']:.4f} to {bits['high']:.4f}"
        cells = (f"`{arm['name']}`", f"{arm['peak_lr']:.3g}", mean, interval, arm["verdict"])
        rows.append(f"| {' | '.join(map(_text, cells))} |")
    head = ["| arm | peak rate | held-out bits per byte | 95% interval | verdict |", "|---|---|---|---|---|"]
    steps, overhead = (newest["numbers"].get(key) for key in ("speedup_steps", "overhead"))
    reached = f"in {1 / steps:.2f} of its steps" if steps else "not within its steps"
    cost = "" if overhead is None else f" A step of it takes {1 + overhead:.2f} times as long."
    return "\n".join([*head, *rows]) + f"\n\nThe last arm reaches the first one's final loss {reached}.{cost}"


def _setting(card: Card, record: Record) -> str:
    """How the newest measurement was made, and where all of them are."""
    history = record["history"]
    newest = history[-1]
    if newest["arms"]:
        seeds = ", ".join(str(seed) for seed in newest["seeds"])
        how = f"{newest['model']} parameters on `{_text(str(newest['corpus']))}`, {newest['budget']}, seeds {seeds}"
        trials = (newest.get("tuning") or {}).get("trials")
        how += f", each arm tuned with {trials} trials" if trials else ", planned rates, not tuned"
    else:
        how = f"the function `{newest['function']}`"
    machine = (newest.get("machine") or {}).get("processor")
    where = f" on {_text(machine)}" if machine else ""
    earlier = f", with {len(history) - 1} earlier" if len(history) > 1 else ""
    expected = f" The claim expects the last arm to be {newest['expect']}." if newest["arms"] else ""
    took = f"{newest['seconds']:,.0f} s{' of runs' if newest['arms'] else ''}"
    return (
        f"Measured {newest['date'][:10]}{where} in {took}: {how}.{expected} "
        f"All numbers{earlier}: [results/{card.name}.json](../../results/{card.name}.json); "
        f"again: `thalweg claim {card.name}`."
    )


def _curves(record: Record | None) -> list[dict[str, Any]]:
    return list(record["history"][-1].get("curves") or []) if record else []


def _ledger_row(card: Card, record: Record | None) -> str:
    newest = record["history"][-1] if record else {"sentence": "not yet", "verdict": ""}
    cells = (f"[{card.name}](#{card.name})", *map(_text, (card.paper_claim, newest["sentence"], newest["verdict"])))
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Text as Markdown shows it, in a table cell, too: no tags, no columns, no lines of its own."""
    return escape(" ".join(words.split()), quote=False).replace("|", "\\|")
