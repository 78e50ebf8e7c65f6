"""Who steps in optimizers.py: every optimizer of the catalogue, and other implementations of its method."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

# Solves a system as large as the model, so it is for problems of a few hundred numbers.
LEFT_OUT = ("gradient_normalized",)
RATE = 1e-4

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Contestant:
    """An implementation of a method: what it builds has `step()` and `state`. `gap`: steps after which costs repeat."""

    method: str
    who: str
    build: Callable[[Groups], Any]
    gap: int = 1


class Both:
    """torch's Muon for matrices and fused AdamW for the rest, which is how torch means it to be used."""

    def __init__(self, groups: Groups) -> None:
        self.parts = [
            torch.optim.Muon([p for g in groups if g["kind"] == "matrix" for p in g["params"]], lr=RATE),
            torch.optim.AdamW([p for g in groups if g["kind"] != "matrix" for p in g["params"]], lr=RATE, fused=True),
        ]

    @property
    def state(self) -> dict[Any, Any]:
        return {p: state for part in self.parts for p, state in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()


class FirstHessian:
    """pytorch_optimizer's Sophia with its curvature given once; it would differentiate twice in a step otherwise."""

    def __init__(self, groups: Groups) -> None:
        from pytorch_optimizer import SophiaH

        parameters = [p for group in groups for p in group["params"]]
        self.inner = SophiaH(parameters, lr=RATE, update_period=1 << 30)
        self.inner.step(hessian=[torch.ones_like(p) for p in parameters])
        for state in self.inner.state.values():
            state.pop("hessian", None)
        self.state = self.inner.state

    def step(self) -> None:
        self.inner.step()


def ours(method: str) -> Contestant:
    from thalweg import catalog

    card = catalog.lookup(method)
    gap = card.options["update_proj_gap"].default if "update_proj_gap" in card.options else 1
    return Contestant(method, "thalweg", lambda groups: catalog.resolve(method)(groups, lr=RATE), int(gap))


def low_rank(name: str, method: str) -> Callable[[Groups], torch.optim.Optimizer]:
    """pytorch_optimizer's GaLore or Fira with the rank, the interval and the scale of our card."""

    def build(groups: Groups) -> torch.optim.Optimizer:
        import pytorch_optimizer

        from thalweg import catalog

        options = {key: option.default for key, option in catalog.lookup(method).options.items()}
        shapes: dict[int, list[Any]] = {}
        for group in groups:
            for p in group["params"]:
                matrix = group["kind"] == "matrix"
                shapes.setdefault(round(options["rank"] * min(p.shape)) if matrix else 0, []).append(p)
        own: Groups = []
        for rank, members in shapes.items():
            said = {"rank": rank, "update_proj_gap": options["update_proj_gap"], "scale": options["alpha"]}
            own.append({"params": members, **(said | {"projection_type": "std"} if rank else {})})
        return getattr(pytorch_optimizer, name)(own, lr=RATE)

    return build


def plain(name: str, **options: Any) -> Callable[[Groups], torch.optim.Optimizer]:
    def build(groups: Groups) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)([p for group in groups for p in group["params"]], lr=RATE, **options)

    return build


def their_muon(groups: Groups) -> torch.optim.Optimizer:
    import pytorch_optimizer

    own = [{"params": group["params"], "use_muon": group["kind"] == "matrix"} for group in groups]
    return pytorch_optimizer.Muon(own, lr=RATE)


def fused(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=RATE, fused=True)


def unfused(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=RATE, foreach=True)


def contestants(methods: list[str] | None) -> Iterator[list[Contestant]]:
    """All optimizers of the catalogue, each with the other implementations of its method."""
    from thalweg import catalog

    gaps = {method: ours(method).gap for method in ("galore", "fira")}
    others = [
        Contestant("adamw", "torch, fused", fused),
        Contestant("adamw", "torch, foreach", unfused),
        Contestant("muon", "torch", Both),
        *(
            [
                Contestant("muon", "pytorch_optimizer", their_muon),
                Contestant("lamb", "pytorch_optimizer", plain("Lamb", weight_decay=0.1)),
                Contestant("lars", "pytorch_optimizer", plain("LARS", weight_decay=0.1, momentum=0.9)),
                Contestant("sophia", "pytorch_optimizer", FirstHessian),
                Contestant("galore", "pytorch_optimizer", low_rank("GaLore", "galore"), gaps["galore"]),
                Contestant("fira", "pytorch_optimizer", low_rank("Fira", "fira"), gaps["fira"]),
            ]
            if importlib.util.find_spec("pytorch_optimizer")
            else []
        ),
    ]
    for card in catalog.load().values():
        if card.slot == "optimizer" and card.name not in LEFT_OUT and card.name in (methods or [card.name]):
            yield [ours(card.name), *(other for other in others if other.method == card.name)]
