"""Kill a run again and again with `kill -9`, resume it each time, and compare what comes out bit for bit.

One run goes undisturbed. Another with the same recipe is killed at random moments (from a seed) and continued with
`thalweg train --resume`, until so many kills have hit a live process; then it may finish. A copy of the run that
finishes before is compared and followed by the next copy. Kills are aimed at three stretches of a process's life:

    start-up     a uniform moment of the time that an undisturbed start takes until its first step
    training     a uniform moment of up to three seconds after metrics.jsonl has moved and a checkpoint exists
    checkpoint   right after a working folder of a checkpoint has appeared

A kill before the first checkpoint (some in start-up are) leaves nothing to resume, `--resume` says so, and the copy is
begun anew in a new folder; these are counted apart. A copy is equal when its final weights (safetensors bytes), its
optimizer state (safetensors bytes) and its whole loss curve are those of the undisturbed run.

Examples:
    python benchmarks/crash.py --json results/crash.json
    python benchmarks/crash.py --kills 100 --seed 1
    python benchmarks/crash.py --kills 4 --steps 40 --batch-size 8
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import finish, say, table, verdict

KINDS = {"training": 0.6, "checkpoint": 0.2, "start-up": 0.2}  # shares of the aimed kills
NOTHING_TO_RESUME = ("no usable checkpoint", "no run folder", "has no such file")
LONGEST = 3.0  # seconds from the first step to a kill
PATIENCE = 600.0  # seconds without an end or a step, after which a process counts as hanging


@dataclass
class Tally:
    """What happened so far."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)
    restarts: int = 0


class Life:
    """One process of `thalweg train`, from its start to its end or its kill."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder, self.log = folder, folder.with_suffix(".stderr.txt")
        self.began = time.monotonic()
        self._before, self._left_behind = self._metrics(), self._working_folders()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "thalweg", "train", *arguments], stdout=subprocess.DEVNULL, stderr=log
            )

    def _metrics(self) -> tuple[int, int]:
        try:
            found = (self.folder / "metrics.jsonl").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def _working_folders(self) -> set[tuple[str, int]]:
        """Unfinished checkpoints with their times, to tell this process's from those of its dead predecessors."""
        found = set()
        for path in (self.folder / "checkpoints").glob(".step-*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # published in this very moment
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    @property
    def ended(self) -> bool:
        if time.monotonic() - self.began > PATIENCE:
            self.process.kill()
            raise SystemExit(f"the process hangs:\n{self.log.read_text()[-3000:]}")
        return self.process.poll() is not None

    @property
    def training(self) -> bool:
        return self._metrics() != self._before

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written; after a kill, whether one was."""
        return bool(self._working_folders() - self._left_behind)

    @property
    def saved(self) -> bool:
        """Whether the run has a checkpoint to go back to."""
        return any((self.folder / "checkpoints").glob("step-*"))

    def wait_until(self, name: str) -> None:
        """Wait for `training`, `writing` or `saved`, or for the end."""
        while not self.ended and not getattr(self, name):
            time.sleep(0.002)

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))

    def kill(self) -> bool:
        """`kill -9`; whether it hit a live process."""
        self.process.kill()
        return self.process.wait() == -9

    def finish(self) -> tuple[int, str]:
        """Wait for the end: (exit status, what it said on standard error)."""
        while not self.ended:
            time.sleep(0.02)
        return self.process.returncode, self.log.read_text()


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl."""
    return max((step for step, _ in curve(folder)), default=0)


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of all steps, in the order of the file; a torn line is left out, as every reader does."""
    path = folder / "metrics.jsonl"
    found = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["event"] == "step":
            found.append((line["step"], line["loss"]))
    return found


def compare(folder: Path, whole: Path) -> dict[str, bool]:
    """Is a finished copy the undisturbed run, bit for bit?"""

    def same(name: str) -> bool:
        path = Path("checkpoints") / "latest" / name
        return (folder / path).read_bytes() == (whole / path).read_bytes()

    weights, state = same("model.safetensors"), same("state.safetensors")
    return {"weights": weights, "optimizer_state": state, "loss_curve": curve(folder) == curve(whole)}


class Experiment:
    """The undisturbed run, and copies of it that are killed until enough kills have landed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.random = random.Random(options.seed)
        self.tally = Tally()
        self.first_step_after = self.after = 0.0

    def recipe(self, out: Path) -> list[str]:
        """The command line of a fresh run."""
        options = self.options
        said = ["--budget", f"{options.steps} steps", "--model", options.model, "--tokenizer", options.tokenizer]
        for key, value in {
            "data.context": options.context,
            "training.batch_size": options.batch_size,
            "training.checkpoint_every": f"{options.checkpoint_every} steps",
        }.items():
            said += ["--set", f"{key}={value}"]
        said += ["--arm", options.arm] if options.arm else []
        return [*said, "--seed", "0", "--out", str(out)]

    def undisturbed(self) -> Path:
        """The run to compare with; also tells how long a start takes."""
        whole = self.folder / "whole"
        life = Life(whole, self.recipe(whole))
        life.wait_until("training")
        self.first_step_after = time.monotonic() - life.began
        code, said = life.finish()
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}:\n{said[-3000:]}")
        seconds = time.monotonic() - life.began
        # So that the kills spread over a few copies, however fast the machine is.
        fitting = 4 * (seconds - self.first_step_after) / self.options.kills
        self.after = self.options.after or min(max(fitting, 0.2), LONGEST)
        times = f"first after {self.first_step_after:.1f} s, all after {seconds:.1f} s"
        say(f"undisturbed: {last_step(whole)} steps, {times}")
        return whole

    def attack(self, life: Life) -> str | None:
        """Kill this process at a random moment; the kind of the moment, or None when it ended by itself before."""
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "start-up":
            life.sleep(self.random.uniform(0.0, self.first_step_after))
        elif kind == "training":
            life.wait_until("training")
            life.wait_until("saved")
            life.sleep(self.random.uniform(0.0, self.after))
        else:
            life.wait_until("writing")
            life.sleep(self.random.uniform(0.0, 0.03))
        return kind if life.kill() else None

    def until_done(self, number: int, whole: Path) -> None:
        """Copy `number` from its first start to its last step, whatever happens in between."""
        attempt, kills_before = 1, len(self.tally.kills)
        out = self.folder / f"copy-{number}-{attempt}"
        arguments = self.recipe(out)
        while True:
            life = Life(out, arguments)
            if len(self.tally.kills) < self.options.kills:
                kind = self.attack(life)
                if kind is not None:
                    self._note(kind, life, number)
                    # Asked of the program, not decided here: if there is nothing to resume, it says so.
                    arguments = ["--resume", str(out)]
                    continue
            code, said = life.finish()
            resumed = arguments[0] == "--resume"
            if code == 2 and resumed and any(reason in said for reason in NOTHING_TO_RESUME):
                attempt += 1
                self.tally.restarts += 1
                out = self.folder / f"copy-{number}-{attempt}"
                say(f"    nothing to resume (killed before the first checkpoint): begun anew in {out.name}")
                arguments = self.recipe(out)
                continue
            if code and not (code == 2 and resumed and "the run is finished" in said):
                raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{said[-3000:]}")
            break
        equal = compare(out, whole)
        kills = len(self.tally.kills) - kills_before
        self.tally.copies.append({"copy": number, "kills": kills, "folder": out.name, **equal})
        told = ", ".join(f"{part} {'equal' if same else 'DIFFERS'}" for part, same in equal.items())
        say(f"  copy {number}: {kills} kills, {told}")

    def _note(self, kind: str, life: Life, number: int) -> None:
        step = last_step(life.folder)
        where = "checkpoint" if life.writing else "training" if life.training else "start-up"
        self.tally.kills.append({"copy": number, "aimed": kind, "hit": where, "step": step})
        done, all_of_them = len(self.tally.kills), self.options.kills
        bar = "#" * round(24 * done / all_of_them)
        say(f"[{bar:<24}] {done}/{all_of_them} killed while in {where}, copy {number}, step {step}")

    def run(self) -> None:
        whole = self.undisturbed()
        number = 0
        while len(self.tally.kills) < self.options.kills or not self.tally.copies:
            number += 1
            self.until_done(number, whole)


def report(options: argparse.Namespace, tally: Tally) -> tuple[str, int]:
    """The table, and how many kills were survived."""
    whole = {c["copy"] for c in tally.copies if c["weights"] and c["optimizer_state"] and c["loss_curve"]}
    survived = sum(kill["copy"] in whole for kill in tally.kills)
    hit = Counter(kill["hit"] for kill in tally.kills)
    rows = [
        ["kills dealt to a live process", len(tally.kills)],
        *([f"... while in {kind}", hit[kind]] for kind in ("start-up", "training", "checkpoint")),
        ["begun anew (no checkpoint yet)", tally.restarts],
        ["copies finished", len(tally.copies)],
        ["... final weights equal bit for bit", sum(c["weights"] for c in tally.copies)],
        ["... optimizer state equal bit for bit", sum(c["optimizer_state"] for c in tally.copies)],
        ["... loss curve equal", sum(c["loss_curve"] for c in tally.copies)],
        ["kills survived", f"{survived} of {len(tally.kills)}"],
    ]
    setting = (
        f"{options.model}, {options.steps} steps of {options.batch_size} windows of {options.context} tokens,"
        f" a checkpoint every {options.checkpoint_every} steps\n\n"
    )
    goal = f"\n\ngoal {options.kills} of {options.kills}: {verdict(survived, options.kills)}"
    return setting + table(["kill -9 and resume", "count"], rows) + goal, survived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="(30)")
    parser.add_argument("--steps", type=int, default=200, help="of the run (200)")
    parser.add_argument("--model", default="0.2M", help="(0.2M)")
    parser.add_argument("--context", type=int, default=64, help="(64)")
    parser.add_argument("--batch-size", type=int, default=64, help="windows a step (64)")
    parser.add_argument("--checkpoint-every", type=int, default=10, help="steps (10)")
    parser.add_argument("--tokenizer", default="bpe:512", help="(bpe:512)")
    parser.add_argument("--arm", default="", help="choices, as in muon+wsd (the defaults)")
    parser.add_argument("--after", type=float, help="longest time from the first step to a kill, s (by speed)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--folder", type=Path, help="keep the runs here (a temporary folder that is removed)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(options, folder)
        experiment.run()
    text, survived = report(options, experiment.tally)
    said = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    finish(text, {"options": said, "survived": survived, **vars(experiment.tally)}, options.json)
    sys.exit(0 if survived == options.kills else 1)


if __name__ == "__main__":
    main()
