"""nn.MultiheadAttention as separate products, so that each of them can be an integer product.

Depends on torch and grids. A hook on the layer sees only its packed input projection, as `layers` explains: to Opacus
the layer is a Linear. The output projection is a layer of its own, as in torch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.grids import FixedGrid, Grid
from fedq.quant.layers import Product, QLinear, QuantizedLayer, is_hooked

WHOLE = -1  # query, key and value parts of the packed projection


class QMultiheadAttention(QuantizedLayer, nn.MultiheadAttention):
    """nn.MultiheadAttention with four kinds of integer products; arguments and results are those of torch.

    Grids: `input_grid` for query, key and value, `output_grid` for their projections, `chances` for the attention
    weights (within [0, 1]), and the output projection's own grid. With float activations there are no grids.
    """

    chances: Grid | None

    def add_grids(self, out_grid: Grid | None = None) -> None:
        """Add the inner grids. `out_grid`: for the output projection's input."""
        QLinear.adopt(self.out_proj, form=self.form, input_grid=out_grid)
        grid = self.input_grid
        self.chances = None if grid is None else FixedGrid(1.0, signed=False, bits=grid.bits)

    @staticmethod
    def unsupported(layer: nn.MultiheadAttention) -> str | None:
        """The reason why such a layer stays float, or None."""
        if not layer._qkv_same_embed_dim:
            return "MultiheadAttention with its own kdim or vdim is not supported"
        if layer.bias_k is not None or layer.add_zero_attn:
            return "MultiheadAttention with add_bias_kv or add_zero_attn is not supported"
        return None

    @property
    def products(self) -> list[Product]:
        bias = None if self.in_proj_bias is None else "in_proj_bias"
        return [Product("in_proj_weight", bias, None if self.source is None else self.source[0])]

    def forward(self, part: int | Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """(n, length, width) -> the packed projection, or the third of it that `part` selects."""
        return functional.linear(x, *self._third(int(part)))

    def rows(self, part: int) -> slice:
        """Rows of the packed projection: query's, key's or value's, or all with `WHOLE`."""
        return slice(None) if part == WHOLE else slice(part * self.embed_dim, (part + 1) * self.embed_dim)

    def _third(self, part: int) -> tuple[Tensor, Tensor | None]:
        (product,) = self.products
        weight, bias = self.fake_quantized(product)
        if part == WHOLE:
            return weight, bias
        return weight[self.rows(part)], None if bias is None else bias[self.rows(part)]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention, in the batch-first or sequence-first format of the layer."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True: needs attn_mask, as in torch; pass the causal mask")
        itself = query is key and key is value
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value, itself=itself)
        scores = (q @ k) / math.sqrt(self.head_dim)
        mask = self._mask(key_padding_mask, attn_mask, scores)
        chances = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        chances = functional.dropout(chances, self.dropout, self.training)
        if self.chances is not None:
            chances = self.chances(chances)
        mixed = (chances @ v).transpose(1, 2).flatten(start_dim=2)
        out = self.out_proj(mixed)
        weights = chances.mean(1) if average_attn_weights else chances
        if unbatched:
            out, weights = out.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights if need_weights else None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, *, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Query and value (n, heads, length, head_dim) and key (n, heads, head_dim, length)."""
        if itself:
            parts = list(self._part(query, WHOLE).chunk(3, dim=-1))
        else:
            parts = [self._part(x, number) for number, x in enumerate((query, key, value))]
        q, k, v = (part.reshape(*part.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        return self._before_product(q), self._before_product(k.transpose(-2, -1)), self._before_product(v)

    def _part(self, x: Tensor, part: int) -> Tensor:
        x = x if self.input_grid is None else self.input_grid(x)
        # The part is a tensor argument with the batch last: hooks store the arguments of a call and expect tensors.
        selected = torch.tensor(part) if is_hooked(self) else part
        projected: Tensor = nn.Module.__call__(self, selected, x)
        return self._after_projection(projected)

    def _after_projection(self, x: Tensor) -> Tensor:
        """Put the whole projection on its grid, in one pass."""
        return x if self.output_grid is None else self.output_grid(x)

    def _before_product(self, x: Tensor) -> Tensor:
        """The identity; an export puts the grid here."""
        return x

    def _mask(self, padding: Tensor | None, attention: Tensor | None, scores: Tensor) -> Tensor | None:
        """The mask to add to the scores, minus infinity at ignored positions; None for no mask."""
        mask = None
        if attention is not None:
            mask = _additive(attention, scores)
            if mask.dim() == 3:  # (n * heads, length, length)
                mask = mask.view(-1, self.num_heads, *mask.shape[1:])
        if padding is not None:
            padded = _additive(padding, scores)[:, None, None, :]
            mask = padded if mask is None else mask + padded
        return mask


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -math.inf)
    return mask.to(scores.dtype)
