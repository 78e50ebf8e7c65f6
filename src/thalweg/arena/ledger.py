"""The ledger: what each card claims, put to the test, and written down whatever comes out.

A claim is a race between arms (`arena.race`) or a small function (`arena.claims`). Its record is one JSON file,
`results/<name>.json`, that only ever grows: every measurement is appended to `history`, newest last, with the hash of
the card and the code that it was made with, so that a measurement of code that has changed since is known to be stale.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg import catalog
from thalweg.arena.claims.finding import file_of, find
from thalweg.arena.race import FAILS, HOLDS, UNDECIDED, methods_of, race
from thalweg.catalog import Card
from thalweg.errors import ArenaError, UserError
from thalweg.runs import output_folder, plain, read_json, write_text

SCHEMA = 1
RESULTS = Path("results")


@dataclass(frozen=True)
class Outcome:
    """What became of one claim.

    Attributes:
        name: of the method.
        path: of the record; None where nothing was written.
        entry: what was appended to it; None where the claim could not be tested.
        error: why it could not be.
    """

    name: str
    path: Path | None
    entry: dict[str, Any] | None
    error: UserError | None = None


def run_claims(
    names: Iterable[str],
    out: str | Path = RESULTS,
    *,
    begin: Callable[[Card], None] | None = None,
    done: Callable[[Outcome], None] | None = None,
    **execution: Any,
) -> list[Outcome]:
    """Put the claims of these methods to the test, one after the other; each is written as soon as it ends.

    A claim that cannot be tested does not keep the others from it.

    Args:
        names: of methods, in the order in which they are run.
        out: folder of the records.
        begin: called with the card before a claim is tested.
        done: called with the outcome after it.
        execution: for the comparisons of races, such as `quiet`.

    Raises:
        RecipeError: there is no method of a name.
        RunError: the folder cannot be made.
    """
    cards = [catalog.lookup(name, where="claim") for name in dict.fromkeys(names)]
    folder = output_folder(out)
    outcomes = []
    for card in cards:
        if begin is not None:
            begin(card)
        try:
            # Before the work: a damaged record would otherwise cost a measurement.
            read_record(card.name, folder)
            measured = measure(card, **execution)
            outcome = Outcome(card.name, append(card, measured, folder), measured)
        except UserError as error:
            outcome = Outcome(card.name, None, None, error)
        outcomes.append(outcome)
        if done is not None:
            done(outcome)
    return outcomes


def measure(card: Card, **execution: Any) -> dict[str, Any]:
    """Test one claim and give back the entry for its history; writes no record."""
    # Taken before the work: code that changes while it runs is not the code that was measured.
    source = hashes(card)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = race(card, **execution) if "arms" in card.claim else _checked(card)
    return plain({"date": date, "hash": source.pop("both"), "source": source, **found})


def _checked(card: Card) -> dict[str, Any]:
    """The entry of a claim that names a function."""
    from thalweg.planner.profile import profile
    from thalweg.sessions.environment import describe

    began = time.perf_counter()
    finding = find(card.claim["function"])()
    seconds = time.perf_counter() - began
    environment = describe(profile().to_dict(), world_size=1)
    return {
        "verdict": {True: HOLDS, False: FAILS, None: UNDECIDED}[finding.holds],
        "sentence": finding.sentence,
        "numbers": dict(finding.numbers),
        "function": card.claim["function"],
        "arms": [],
        "budget": None,
        "model": None,
        "seeds": [0],
        "interval": None,
        "seconds": round(seconds, 1),
        "machine": environment["machine"],
        "versions": environment["versions"],
    }


# -- what a measurement was made with -----------------------------------------------------------------------------


def hashes(card: Card) -> dict[str, str]:
    """SHA-256 of what a claim's outcome depends on: of the cards, of the code, and of "both"."""
    from thalweg.arena.sources import function_files, hash_of, method_files

    names = methods_of(card)
    paths = {path for name in names for path in method_files(name)}
    if "function" in card.claim:
        # A function may test anything that a run goes through, and what it imports besides.
        paths |= function_files(f"thalweg.arena.claims.{file_of(card.claim['function']).stem}", names)
    # The whole table of this card, and of the others what decides how they train.
    tables = {name: _trains(_table(name)) for name in names} | {card.name: _table(card.name)}
    cards = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    code = hash_of(paths)
    return {"card": cards, "code": code, "both": hashlib.sha256(f"{cards} {code}".encode()).hexdigest()}


def _table(name: str) -> dict[str, Any]:
    """A card as it stands in its family's file."""
    path = catalog.METHODS / catalog.lookup(name).family / "cards.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))[name]


def _trains(table: dict[str, Any]) -> dict[str, Any]:
    options = {key: option["default"] for key, option in table.get("options", {}).items()}
    return {"object": table["object"], "options": options, "defaults": table.get("defaults", {})}


def is_stale(name: str, out: str | Path = RESULTS) -> bool:
    """Whether a method's claim was never measured, or card or code have changed since it was measured last.

    So is one whose record cannot be read: who runs it is told what is wrong.
    """
    try:
        record = read_record(name, Path(out))
    except UserError:
        return True
    return record is None or record["history"][-1]["hash"] != hashes(catalog.lookup(name))["both"]


# -- the records --------------------------------------------------------------------------------------------------


def read(out: str | Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The records of all methods that have one, by name, in the catalogue's order.

    Raises:
        ArenaError, RunError: a record is damaged.
    """
    found = {name: read_record(name, Path(out)) for name in catalog.load()}
    return {name: record for name, record in found.items() if record is not None}


def comparisons(out: str | Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """Comparisons between members of one family, by family: results.json of each, kept as
    compared/<family>-<what>.json.

    Raises:
        RunError: one is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((Path(out) / "compared").glob("*-*.json")):
        found.setdefault(path.stem.partition("-")[0], []).append(read_json(path))
    return found


def read_record(name: str, folder: Path) -> dict[str, Any] | None:
    """The record of one method, or None where there is none; what is no record is an `ArenaError`."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    record = read_json(path)
    history = record.get("history") if isinstance(record, dict) else None
    sound = isinstance(history, list) and history and all(isinstance(one, dict) and "hash" in one for one in history)
    if not sound or record.get("schema") != SCHEMA:
        raise ArenaError(
            "this is no record of a claim that this version can read",
            where=str(path),
            fix="Put the file back as it was, or move it away to begin a new history.",
        )
    return record


def append(card: Card, measured: dict[str, Any], out: str | Path = RESULTS) -> Path:
    """Add an entry to a method's record; what stands in it stays, and a reader sees the old file or the new one."""
    folder = Path(out)
    before = read_record(card.name, folder)
    record = {
        "schema": SCHEMA,
        "name": card.name,
        "family": card.family,
        "paper_claim": card.paper_claim,
        "title": card.title,
        "arxiv": card.arxiv,
        "year": card.year,
        "history": [*(before["history"] if before else []), measured],
    }
    path = folder / f"{card.name}.json"
    try:
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise ArenaError(f"cannot write the record: {error.strerror}", where=str(path)) from None
    return path
