"""What a wind tunnel has decided and spent, kept so that the same command goes on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from thalweg.errors import RunError
from thalweg.runs import output_folder, read_json, write_text

FILE = "tunnel.json"


class Memory:
    """A JSON file in the output folder.

    Args:
        out: the folder.
        same: what makes two calls the same tunnel; decisions of another one are forgotten.
        started: `time.monotonic()` when this call began.

    Attributes:
        decided: by name, as plain data.
    """

    def __init__(self, out: Path, same: dict[str, Any], started: float) -> None:
        self.path, self.same, self.started = output_folder(out) / FILE, same, started
        self.decided: dict[str, Any] = {}
        self._before = 0.0
        try:
            kept = read_json(self.path) if self.path.exists() else {}
            if kept.get("same") == same:
                self.decided, self._before = dict(kept["decided"]), float(kept["seconds"])
        except (RunError, AttributeError, KeyError, TypeError, ValueError):
            self.decided = {}  # damaged: decided anew

    @property
    def spent(self) -> float:
        """Seconds so far, those of earlier calls included."""
        return self._before + time.monotonic() - self.started

    def decide(self, **values: Any) -> None:
        """Keep decisions."""
        self.decided |= values
        self.save()

    def save(self) -> None:
        """Write what is decided and spent."""
        kept = {"same": self.same, "seconds": round(self.spent, 2), "decided": self.decided}
        write_text(self.path, json.dumps(kept, indent=1) + "\n")
