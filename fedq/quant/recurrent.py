"""nn.LSTM step by step, so that its products can be integer products. Depends on torch and grids.

A hook on the layer sees the gates of one step at a time: to Opacus the layer is the sum of two Linear layers. It is
slower than torch's fused LSTM, which no hook can look into.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.grids import FixedGrid, Grid
from fedq.quant.layers import Product, QuantizedLayer, is_hooked


class QLSTM(QuantizedLayer, nn.LSTM):
    """nn.LSTM with integer weights; arguments and results as in torch, without packed sequences and proj_size.

    Grids: `input_grid` for the first layer's input, `hidden_grid` for hidden states, which are within [-1, 1]. Cell
    states and gates stay float. With float activations there are no grids.
    """

    hidden_grid: Grid | None
    held: list[tuple[Tensor, Tensor | None]]  # parameters of the current layer and direction

    def add_grids(self) -> None:
        assert self.output_grid is None  # the hidden states have their own grid
        grid = self.input_grid
        # Not `bounded`: the caller's initial state may be any number.
        self.hidden_grid = None if grid is None else FixedGrid(1.0, signed=True, bits=grid.bits)
        self.held = []

    @staticmethod
    def unsupported(layer: nn.LSTM) -> str | None:
        """The reason why such a layer stays float, or None."""
        return "LSTM with proj_size is not supported" if layer.proj_size else None

    @property
    def products(self) -> list[Product]:
        return [p for n in range(self.num_layers) for d in range(self._directions) for p in self.products_of(n, d)]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def products_of(self, number: int, direction: int) -> tuple[Product, Product]:
        """The two products of one layer and direction: with its input and with its previous hidden state."""
        end = f"_l{number}{'_reverse' if direction else ''}"
        first = None if self.source is None else self.source[0]
        grid = first if number == 0 else self.hidden_grid
        biases = (f"bias_ih{end}", f"bias_hh{end}") if self.bias else (None, None)
        return Product(f"weight_ih{end}", biases[0], grid), Product(f"weight_hh{end}", biases[1], self.hidden_grid)

    def forward(self, which: Tensor | None, x: Tensor, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """One step's gates before the activation functions, (n, 4 * hidden_size), with the parameters in `held`.

        `which`: layer and direction; a hook stores it with the other arguments of the call.
        """
        of_input, of_state = self.held
        return functional.linear(x, *of_input) + functional.linear(hidden, *of_state)

    def __call__(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As nn.LSTM."""
        if not isinstance(x, Tensor):
            raise TypeError("a quantized LSTM needs tensors, not packed sequences; pad them, or name it in quant.skip")
        unbatched = x.dim() == 2
        if unbatched:
            x = x.unsqueeze(0 if self.batch_first else 1)
            state = None if state is None else (state[0].unsqueeze(1), state[1].unsqueeze(1))
        steps = list(x.unbind(1 if self.batch_first else 0))
        if self.input_grid is not None:
            steps = [self.input_grid(step) for step in steps]
        finals: list[tuple[Tensor, Tensor]] = []
        for number in range(self.num_layers):
            ways = []
            for direction in range(self._directions):
                at = number * self._directions + direction
                begin = self._begin(steps[0]) if state is None else (state[0][at], state[1][at])
                outputs, final = self._run(steps[::-1] if direction else steps, begin, (number, direction))
                ways.append(outputs[::-1] if direction else outputs)
                finals.append(final)
            steps = ways[0] if len(ways) == 1 else [self._joined(both) for both in zip(*ways, strict=True)]
            if self.dropout and number < self.num_layers - 1:
                steps = [functional.dropout(step, self.dropout, self.training) for step in steps]
        out = torch.stack(steps, dim=1 if self.batch_first else 0)
        hidden, cell = (torch.stack(parts) for parts in zip(*finals, strict=True))
        if unbatched:
            return out.squeeze(0 if self.batch_first else 1), (hidden.squeeze(1), cell.squeeze(1))
        return out, (hidden, cell)

    def _begin(self, step: Tensor) -> tuple[Tensor, Tensor]:
        zeros = step.new_zeros((step.shape[0], self.hidden_size))
        return zeros, zeros

    def _run(
        self, steps: list[Tensor], state: tuple[Tensor, Tensor], which: tuple[int, int]
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Run one layer in one direction."""
        selected = torch.tensor(which) if is_hooked(self) else None
        hidden, cell = state
        hidden = self._on_grid(hidden)
        outputs = []
        self.held = [
            self.fake_quantized(product) for product in self.products_of(*which)
        ]  # computed once for all steps
        try:
            for step in steps:
                gates: Any = nn.Module.__call__(self, selected, step, hidden)
                into, forget, change, out = gates.chunk(4, dim=-1)  # torch's order
                cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(change)
                hidden = self._on_grid(torch.sigmoid(out) * torch.tanh(cell))
                outputs.append(hidden)
        finally:
            self.held = []  # a module that holds tensors with a gradient cannot be copied
        return outputs, (hidden, cell)

    def _joined(self, both: tuple[Tensor, Tensor]) -> Tensor:
        joined = torch.cat(both, dim=-1)
        # It is on the grid already, but in the export a kernel needs the grid right before it.
        return joined if self.training else self._on_grid(joined)

    def _on_grid(self, hidden: Tensor) -> Tensor:
        return hidden if self.hidden_grid is None else self.hidden_grid(hidden)
