"""Reports: what a run planned, what happened, and how to repeat it, as one HTML file that opens anywhere.

`write_report(folder)` reads a run folder and writes `report.html` into it: no server, no network, no other file.
The libraries it needs (jinja2, plotly) are imported when a report is written, not before.
"""

from thalweg.reports.page import write_report

__all__ = ["write_report"]
