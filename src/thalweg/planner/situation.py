"""What planning starts from and never changes: the recipe, the corpus, and this machine's share for one rank."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from thalweg.data import TokenStore
from thalweg.errors import BudgetError
from thalweg.laws.corpus_laws import Laws
from thalweg.planner import machine_speed
from thalweg.planner.assumptions import CLOSING_SECONDS, FREE_SHARE, PROCESS_BYTES
from thalweg.planner.profile import MachineProfile
from thalweg.planner.rules import AS_SAID, Decision
from thalweg.planner.which_laws import which_laws
from thalweg.recipe import Recipe


@dataclass(frozen=True)
class Situation:
    """Where a plan is made.

    Attributes:
        recipe, store: what to train, on what.
        laws: that the loss and the peak rate are taken from.
        device: of this rank. ranks: how many there are in all; those of a CPU share its cores and memory.
        threads: of a rank.
        precision: "float32" or "bfloat16", with the reason.
        peaks: measured matrix-product FLOP/s of a rank by precision.
        memory: bytes that a rank may use. memory_said: whether the user said so.
        seconds: of a time budget what is left for training and evaluating; infinite for other budgets.
    """

    recipe: Recipe
    store: TokenStore
    laws: Laws
    device: torch.device
    ranks: int
    threads: int
    precision: Decision
    peaks: dict[str, float]
    memory: float
    memory_said: bool
    seconds: float

    @property
    def peak(self) -> float:
        """FLOP/s of a rank's matrix products in the precision chosen."""
        return self.peaks[self.precision.value]

    @property
    def timed(self) -> bool:
        """Whether the budget is in seconds."""
        return self.recipe.budget.unit == "seconds"


def situation(
    recipe: Recipe,
    store: TokenStore,
    profile: MachineProfile,
    *,
    device: torch.device,
    world_size: int,
    seconds: float,
    memory: float | None,
) -> Situation:
    """Work out each rank's share of the machine and what is left of the budget.

    Raises:
        BudgetError: the time is spent before training begins.
        UserError: the recipe names a file of laws that holds none.
    """
    # Ranks on a CPU divide one machine; on GPUs each has its own.
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) if world_size > 1 else 1
    sharing = neighbours if device.type == "cpu" else 1
    peaks = {name: rate / sharing for name, rate in _peaks(profile, device).items()}
    timed = recipe.budget.unit == "seconds"
    left = seconds - CLOSING_SECONDS if timed else math.inf
    if left <= 0:
        raise BudgetError(
            f"of {recipe.budget} nothing is left to train: preparing took {recipe.budget.amount - seconds:.1f} s, "
            f"and {CLOSING_SECONDS:g} s go to samples and report",
            where="budget",
            fix="Give more time; a corpus that is prepared once opens at once the next time.",
        )
    return Situation(
        recipe=recipe,
        store=store,
        laws=which_laws(recipe.laws, store),
        device=device,
        ranks=world_size,
        threads=max(profile.threads // sharing, 1),
        precision=_precision(recipe, peaks, profile.bfloat16_pays and device.type == profile.device),
        peaks=peaks,
        memory=_memory(profile, device, neighbours, sharing, memory),
        memory_said=memory is not None,
        seconds=left,
    )


def _peaks(profile: MachineProfile, device: torch.device) -> dict[str, float]:
    if device.type != profile.device:  # a CPU asked for on a machine with a GPU, which is what was profiled
        rate = machine_speed.matmul_flops(device.type, "float32")
        return {"float32": rate, "bfloat16": rate}
    return {"float32": profile.float32_flops, "bfloat16": profile.bfloat16_flops or profile.float32_flops}


def _precision(recipe: Recipe, peaks: dict[str, float], pays: bool) -> Decision:
    wanted = recipe.training.precision
    if wanted != "auto":
        return Decision(wanted, AS_SAID)
    if not pays:
        return Decision("float32", "bfloat16 brings no speed on this machine")
    gain = peaks["bfloat16"] / peaks["float32"]
    return Decision("bfloat16", f"matrix products are {gain:.1f} times as fast as in float32 here")


def _memory(profile: MachineProfile, device: torch.device, neighbours: int, sharing: int, said: float | None) -> float:
    """Bytes of a rank. What the user says is for all ranks of this machine; what is free is known by device."""
    if said is not None:
        return said / neighbours
    if device.type == "cuda" and profile.device_memory:
        return FREE_SHARE * profile.device_memory
    # This process is there already and is not counted as free.
    return FREE_SHARE * profile.memory_available / sharing + PROCESS_BYTES["cpu"]
