"""Pages as the tests read them: their elements, and what a real browser makes of them.

A small probe is added to a copy of a page (its hash to the copy's policy) and leaves what it saw in the document.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=4000",
    "--dump-dom",
]


class Elements(HTMLParser):
    """The start tags of a page, its visible text, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside is None:
            self.text += data

    def data(self) -> Any:
        """The JSON that the page's script reads."""
        kinds = [attributes.get("type") for tag, attributes in self.tags if tag == "script"]
        return json.loads(self.scripts[kinds.index("application/json")])


@dataclass(frozen=True)
class Visit:
    """The document after its scripts ran, and what the browser's console said."""

    dom: str
    console: list[str]

    @property
    def seen(self) -> dict[str, Any]:
        found = re.search(r'<html[^>]*data-seen="([^"]*)"', self.dom)
        assert found is not None, self.console
        return json.loads(html.unescape(found.group(1)))


def visit(address: str, profile: Path, *flags: str) -> Visit:
    """Open a page, let its scripts run, and take the document."""
    if CHROMIUM is None:
        pytest.skip("needs the browser chromium on the PATH")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8", check=True)
    return Visit(result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line])


def probed(page: Path, probe: str) -> Path:
    """A copy of the page that tells what it sees; the probe sets `document.documentElement.dataset.seen`."""
    source = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    source = source.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = page.with_name("probed.html")
    copy.write_text(source.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    return copy


def framed(page: Path, width: int) -> Path:
    """A page around the page: a headless window is never narrower than 500 pixels, a frame of a phone's width is."""
    outer = page.with_name("phone.html")
    style = f"border:0;width:{width}px;height:800px"
    outer.write_text(
        f'<!DOCTYPE html><html><body><iframe src="{page.as_uri()}" style="{style}"></iframe>'
        '<script>addEventListener("message", (e) => { document.documentElement.dataset.seen = e.data; });</script>'
    )
    return outer
