"""A comparison's outcome: the results as data, and the ways to look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thalweg.errors import ArenaError
from thalweg.runs import read_json, write_text

SCHEMA = 1


class Comparison:
    """What `thalweg.compare` gives.

    Attributes:
        results: everything, as results.json holds it.
        folder: where results.json, table.md and report.html are.
    """

    def __init__(self, results: dict[str, Any], folder: Path) -> None:
        self.results, self.folder = results, folder

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """A comparison made before.

        Raises:
            RunError: no results.json, or a damaged one. ArenaError: one of another version.
        """
        path = Path(folder) / "results.json"
        results = read_json(path)
        if not isinstance(results, dict) or results.get("schema") != SCHEMA:
            raise ArenaError("these results are of another version of Thalweg", where=str(path))
        return cls(results, Path(folder))

    def write(self) -> None:
        """Write results.json, table.md and report.html into the folder."""
        from thalweg.reports import comparison_page, comparison_table

        text = json.dumps(self.results, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(self.folder / "results.json", text + "\n")
        write_text(self.folder / "table.md", comparison_table.markdown(self.results))
        comparison_page.write(self.results, self.report)

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def arm(self, name: str, workload: int = 0) -> dict[str, Any]:
        """The entry of an arm: its runs, mean, difference and verdict."""
        for arm in self.results["workloads"][workload]["arms"]:
            if arm["name"] == name:
                return arm
        raise ArenaError(f"there was no arm {name!r} in this comparison", where=str(self.folder))

    def verdicts(self, workload: int = 0) -> dict[str, str]:
        """The word for each arm."""
        return {arm["name"]: arm["verdict"] for arm in self.results["workloads"][workload]["arms"]}

    def table(self) -> str:
        """The tables in Markdown."""
        from thalweg.reports import comparison_table

        return comparison_table.markdown(self.results)

    def plot(self, workload: int = 0) -> Any:
        """The held-out curves with their bands over seeds, as a matplotlib figure."""
        from thalweg.reports import comparison_figures

        return comparison_figures.curves(self.results, workload)

    def __rich__(self) -> Any:
        from thalweg.reports import comparison_table

        return comparison_table.rich(self.results)

    def _repr_html_(self) -> str:
        """For notebooks."""
        import io

        from rich.console import Console

        console = Console(record=True, width=140, file=io.StringIO())
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
