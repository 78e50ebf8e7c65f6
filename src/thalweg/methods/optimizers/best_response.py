"""A model that answers to its hyperparameters: each linear layer's weights as an affine function of them.

    y_b = W x_b + b + (V d_b) * (Y x_b) + (C d_b) * c            d_b = h_b - h, of the example b

W, b are the model's own. h [n] are the hyperparameters as unconstrained numbers, h_b those that example b is trained
with. What is added is the response: Y [out, in] and c [out] like W and b, gated row by row by V and C [out, n]. So the
weights at h_b are W + diag(V d_b) Y, and with d = 0 the model is the plain one: that is what is evaluated and saved.
When h moves, the function of h stays what it is and W goes along:

    W <- W + diag(V (h' - h)) Y,          b likewise

Dropout has a rate of its own for each example: on the embeddings and on what every block's attention and feed-forward
add to the stream (where GPT-2 has it), drawn from a generator that is seeded with the step and, where there are several
ranks, the rank. In compiled blocks the draw is a break in the graph.

Source of the response: "Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response
Functions" (2019, arXiv:1903.03088). Of writing it around the current h: "Delta-STN: Efficient Bilevel Optimization for
Neural Networks using Structured Response Jacobians" (2020, arXiv:2010.13514). With W - diag(V h) Y for W it is the form
of the first, the same functions; only what a gradient step does to V differs (it answers to h_b - h, not to h_b).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from thalweg.errors import ModelError
from thalweg.models.blocks import decoder_blocks

Pair = tuple[Tensor | None, Tensor | None]

GATE_SIZE = 0.01  # standard deviation of V and C at first, as in the released code
WRITERS = ("o_proj", "down_proj")  # what they give is added to the stream


class Gate:
    """The response of one linear layer; `parameters` are Y, V and, with a bias, c, C."""

    def __init__(self, linear: nn.Linear, count: int, generator: torch.Generator) -> None:
        self.linear = linear
        bound = linear.in_features**-0.5
        weight, rows = torch.empty(linear.weight.shape), torch.empty(linear.out_features, count)
        drawn = [weight.uniform_(-bound, bound, generator=generator), rows.normal_(0.0, GATE_SIZE, generator=generator)]
        if linear.bias is not None:
            bias, gates = torch.empty(linear.out_features), torch.empty(linear.out_features, count)
            drawn += [bias.uniform_(-bound, bound, generator=generator)]
            drawn += [gates.normal_(0.0, GATE_SIZE, generator=generator)]
        self.parameters = [Parameter(tensor.to(linear.weight)) for tensor in drawn]

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(W, Y, V), and (b, c, C) where there is a bias."""
        found: list[tuple[Tensor, Tensor, Tensor]] = [(self.linear.weight, self.parameters[0], self.parameters[1])]
        return [*found, (self.linear.bias, self.parameters[2], self.parameters[3])] if self.parameters[2:] else found

    def response(self, x: Tensor, offsets: Tensor) -> Tensor:
        """What is added to the layer's output: x [B, T, in], offsets [B or 1, n] -> [B, T, out]."""
        if x.ndim != 3:
            raise ModelError(
                f"a linear layer is given a tensor of shape {tuple(x.shape)}, in which no example can be told",
                where="self_tuning_networks",
                fix="Models whose layers see [examples, tokens, width] can be tuned; mixtures of experts cannot.",
            )
        weight, rows, *bias = self.parameters
        made = functional.linear(x, weight)
        made = made * (offsets @ rows.T).unsqueeze(1).to(made.dtype)
        if bias:
            made = made + ((offsets @ bias[1].T) * bias[0]).unsqueeze(1).to(made.dtype)
        return made

    @torch.no_grad()
    def move(self, change: Tensor) -> None:
        """Take the layer's weights to where h has moved by `change`, [n]."""
        for own, response, rows in self.parts():
            gate = rows @ change
            own.add_(response * (gate[:, None] if own.ndim == 2 else gate))

    def penalty(self, offsets: Tensor) -> Tensor:
        """Mean over the examples of ||W(h_b)||^2 / 2, a scalar with its graph; biases are not decayed."""
        own, response, rows = self.parts()[0]
        gates = offsets @ rows.T
        cross, square = (own * response).sum(1), response.square().sum(1)
        return 0.5 * (own.square().sum() + (2.0 * gates.mean(0) * cross + gates.square().mean(0) * square).sum())


class BestResponse:
    """Lays the response around a model's decoder blocks, by hooks: the model keeps its parameters and its names.

    Between `begin` and `end` passes of the model in training mode (with `always`, in any) answer to the offsets; all
    others are those of the plain model.

    Args:
        model: Llama-shaped, on its device; passes are told by its input embedding.
        count: n, the number of hyperparameters; 0 makes no gates: dropout only.
        seed: of the initial response, the same on every rank.

    Raises:
        ModelError: a model of another shape.
    """

    def __init__(self, model: nn.Module, count: int, seed: int) -> None:
        blocks = decoder_blocks(model)
        linears = [
            (name.split(".")[-1], module)
            for block in blocks
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
        if not set(WRITERS) <= {name for name, _ in linears}:
            raise ModelError(
                f"{type(model).__name__} is not of Llama's shape: its blocks have no {' and '.join(WRITERS)}",
                where="self_tuning_networks",
                fix="Models such as Llama, Mistral, Qwen2 and Qwen3 are, and those of the ladder.",
            )
        generator = torch.Generator().manual_seed(seed)
        self.gates = [Gate(linear, count, generator) for _, linear in linears] if count else []
        self._model, self.device = model, linears[0][1].weight.device
        self._generator: torch.Generator | None = None
        self._step: Pair = (None, None)  # (offsets, rates) of all examples of a step
        self._pass: Pair = (None, None)  # of those in the pass that is under way
        self.end()
        embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        embedding.register_forward_pre_hook(self._find_rows)
        embedding.register_forward_hook(self._drop)
        for gate in self.gates:
            gate.linear.register_forward_hook(self._respond(gate))
        for name, linear in linears:
            if name in WRITERS:
                linear.register_forward_hook(self._drop)

    def begin(self, rows: int, offsets: Tensor | None, rates: Tensor | None, seed: int, always: bool = False) -> None:
        """From here on passes answer.

        Args:
            rows: examples of a step; its micro-batches come in order, perhaps several times.
            offsets: d, [rows, n], or None. rates: of dropout, [rows], or None for no dropout.
            seed: of the dropout; a pass over the same examples draws the same again.
            always: in evaluation mode, too.
        """
        self._rows, self._next, self._seed, self._always = rows, 0, seed, always
        self._step, self._pass = (offsets, rates), (None, None)

    def end(self) -> None:
        """From here on the model is the plain one."""
        self.begin(0, None, None, 0)

    def move(self, change: Tensor) -> None:
        """Take all weights to where h has moved by `change`, [n]."""
        for gate in self.gates:
            gate.move(change)

    def _find_rows(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Which examples of the step the pass that begins here is for."""
        if self._rows == 0 or not (self._model.training or self._always):
            self._pass = (None, None)
            return
        ids = args[0]
        if self._next == 0:
            self._generator = torch.Generator(ids.device).manual_seed(self._seed)
        here = slice(self._next, self._next + len(ids))
        offsets, rates = self._step
        self._pass = (None if offsets is None else offsets[here], None if rates is None else rates[here])
        self._next = (self._next + len(ids)) % self._rows

    def _respond(self, gate: Gate) -> Any:
        def respond(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            offsets = self._pass[0]
            return output if offsets is None else output + gate.response(args[0], offsets)

        return respond

    def _drop(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rates = self._pass[1]
        if rates is None:
            return output
        keep = (1.0 - rates)[:, None, None]
        drawn = torch.rand(output.shape, generator=self._generator, device=output.device)
        return output * ((drawn < keep) / keep).to(output.dtype)
