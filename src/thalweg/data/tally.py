"""Things in a corpus that are odd but no reason to stop: counted, and said once."""

from __future__ import annotations

from dataclasses import dataclass, field

MESSAGES = {
    "not_utf8": "not valid UTF-8; the undecodable bytes became U+FFFD",
    "lone_surrogates": "documents held half of a surrogate pair, which no UTF-8 text can; it became U+FFFD",
    "null_field": "documents had a null text field and were left out",
    "unknown_extension": "files have an extension that is not read and were skipped",
    "linked_folder": "symbolic links to folders were not followed",
    "forced_split": "the document hash left one side of the split empty; the split point was moved",
}


@dataclass
class Tally:
    """Counts by kind, with the first place where each was seen."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    _places: set[tuple[str, str]] = field(default_factory=set)

    def add(self, kind: str, where: str) -> None:
        """Count one occurrence of `kind` (a key of MESSAGES) seen at `where`."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, where)

    def add_once(self, kind: str, where: str) -> None:
        """Count `kind` at most once for the place `where` (a file with a thousand bad bytes is one bad file)."""
        if (kind, where) not in self._places:
            self._places.add((kind, where))
            self.add(kind, where)

    def warnings(self) -> list[dict[str, str | int]]:
        """What to put in the manifest: kind, count, first place, and a sentence for people."""
        return [
            {
                "kind": kind,
                "count": count,
                "first": self.first[kind],
                "message": f"{count}: {MESSAGES[kind]} (first: {self.first[kind]})",
            }
            for kind, count in sorted(self.counts.items())
        ]
