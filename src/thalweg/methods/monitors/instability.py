"""Warning signs of an unstable run, read off the model before the loss shows them.

Two failures of large transformers announce themselves in numbers that cost one forward pass to read:

    attention logits   z = q . k / sqrt(d_head) grows until the softmax is one-hot and its gradient vanishes;
                       every run of the source whose largest z passed 1e4 diverged
    output logits      log Z = logsumexp of the logits drifts away from 0 until the loss diverges
    gradients          the root mean square of a matrix's gradient falls to AdamW's eps, and the layer stops learning

A warning is given when a sign has passed its threshold, or when a straight line through the logarithms of its last
measurements reaches the threshold before the budget ends and within twice the steps that the line looks back on: what
grows fast while the rate warms up does not go on like that.

Source: "Small-scale proxies for large-scale Transformer training instabilities" (2023, arXiv:2309.14322). The threshold
of the attention logits is theirs; those of log Z and of the gradient (ten times eps) are ours, and so is the forecast,
which the source makes over model sizes and we over time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import RecipeError
from thalweg.models.head import evaluation_mode

# Measurements that a forecast looks back on, and the fewest that it believes.
WINDOW, FEWEST = 6, 4
# How far ahead a line is believed, in units of the steps that it looks back on.
REACH = 2.0
LOG_Z_THRESHOLD = 50.0
GRADIENT_THRESHOLD = 1e-7


@torch.no_grad()
def attention_logits(attention: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Largest |z| over all pairs that attend to each other, a scalar.

    Args:
        attention: a transformers attention layer of the Llama form (q_proj, k_proj, head_dim; perhaps q_norm, k_norm).
        hidden: its input, [B, T, d].
        position_embeddings: cosines and sines, as the model hands them to the layer.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    batch, length, _ = hidden.shape
    shape = (batch, length, -1, attention.head_dim)
    query, key = attention.q_proj(hidden).view(shape), attention.k_proj(hidden).view(shape)  # type: ignore[operator]
    if hasattr(attention, "q_norm") and hasattr(attention, "k_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)  # type: ignore[operator]
    query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)
    key = repeat_kv(key, query.shape[1] // key.shape[1])
    scores = (query.float() @ key.float().mT) * attention.head_dim**-0.5  # type: ignore[operator]
    visible = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    return scores.masked_fill(~visible, 0.0).abs().amax()


@torch.no_grad()
def measure(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """The signs that a forward pass shows.

    Args:
        model: a Hugging Face causal language model; its weights, mode and the random state stay as they are.
        batch: "input_ids" [B, T].

    Returns:
        "output_log_z": mean |log Z|; "output_rms": of the states before the head; and, for attention layers of the
        Llama form, "attention_logit": the largest |z| of all layers.
    """
    found: list[Tensor] = []

    def look(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = named.get("hidden_states", arguments[0] if arguments else None)
        embeddings = named.get("position_embeddings")
        if hidden is not None and embeddings is not None:
            found.append(attention_logits(layer, hidden, embeddings))

    layers = [module for module in model.modules() if all(hasattr(module, name) for name in ("q_proj", "k_proj"))]
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        with evaluation_mode(model):
            out = model(input_ids=batch["input_ids"], use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    signs = {
        "output_log_z": float(out.logits.float().logsumexp(-1).abs().mean()),
        "output_rms": float(out.hidden_states[-1].float().square().mean().sqrt()),
    }
    return signs | ({"attention_logit": float(torch.stack(found).amax())} if found else {})


def forecast_crossing(steps: list[int], values: list[float], threshold: float) -> float | None:
    """The step at which a straight line through log(value) over the last steps reaches a threshold.

    Works for signs that grow towards a threshold above them and for signs that fall towards one below.

    Returns:
        The step, the last one if the threshold is passed already, None where the line does not lead there or only
        further ahead than it can be believed.
    """
    if not values or min(values) <= 0:
        return None
    rising = values[0] < threshold
    if (values[-1] >= threshold) == rising:
        return float(steps[-1])
    if len(values) < FEWEST:
        return None
    x, y = torch.tensor(steps[-WINDOW:], dtype=torch.float64), torch.tensor(values[-WINDOW:], dtype=torch.float64).log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    left = math.log(threshold) - float(y[-1])
    believed = REACH * float(x[-1] - x[0])
    return steps[-1] + left / slope if slope * left > 0 and left / slope <= believed else None


class Instability:
    """A callback that measures the signs every so many steps and warns once for each.

    Args:
        every: steps between two measurements.
        attention_threshold: of the largest |z|.

    Raises:
        RecipeError: `every` below 1.
    """

    def __init__(self, every: int = 100, attention_threshold: float = 1e4) -> None:
        if every < 1:
            raise RecipeError(f"every = {every} is below 1", where="instability", fix="Try every=100.")
        self.every = every
        self.thresholds = {
            "attention_logit": float(attention_threshold),
            "output_log_z": LOG_Z_THRESHOLD,
            "gradient_rms": GRADIENT_THRESHOLD,
        }
        self.steps: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.warned: dict[str, int] = {}
        self._gradient: float | None = None

    def gradients(self, trainer: Any) -> None:
        """Note the smallest root mean square of a matrix's gradient, if this step will be measured."""
        if (trainer.clock.step + 1) % self.every == 0:
            squares = [p.grad.square().mean() for p in trainer.parameters if p.grad is not None and p.ndim > 1]
            self._gradient = float(torch.stack(squares).amin().sqrt()) if squares else None

    def step(self, trainer: Any) -> None:
        """Add the signs to the metrics, and a "warning" in words when there is one."""
        if trainer.clock.step % self.every:
            return
        signs = measure(trainer.model, trainer.held_out_batch())
        if self._gradient is not None:
            signs["gradient_rms"] = self._gradient
        trainer.metrics.update(signs)
        self.steps.append(trainer.clock.step)
        final = trainer.clock.step / max(trainer.clock.progress, 1e-9)
        for name, threshold in self.thresholds.items():
            if name in signs:
                self.history.setdefault(name, []).append(signs[name])
                self._warn(trainer, name, threshold, final)

    def _warn(self, trainer: Any, name: str, threshold: float, final: float) -> None:
        values = self.history[name]
        crossing = forecast_crossing(self.steps[-len(values) :], values, threshold)
        if crossing is None or crossing > final or name in self.warned:
            return
        self.warned[name] = trainer.clock.step
        passed = crossing <= trainer.clock.step
        when = "has passed" if passed else f"will pass, at step {crossing:.0f} if it goes on like this,"
        said = f"{name} = {values[-1]:.3g} {when} {threshold:g}: the run is getting unstable"
        before = trainer.metrics.get("warning")
        trainer.metrics["warning"] = f"{before}; {said}" if before else said

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "history": dict(self.history), "warned": dict(self.warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.history, self.warned = list(state["steps"]), dict(state["history"]), dict(state["warned"])
