"""nn.MultiheadAttention spelled out, so that each of its products can be one of integers. Knows torch and grids.

The hooks of whoever hooks the layer see its packed input projection alone, as `layers` explains: what Opacus takes
for the layer is a Linear. The output projection is a layer of its own, as in torch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.grids import FixedGrid, Grid
from fedq.quant.layers import Product, QLinear, QuantizedLayer, is_hooked

WHOLE = -1  # all thirds of the packed projection


class QMultiheadAttention(QuantizedLayer, nn.MultiheadAttention):
    """nn.MultiheadAttention whose four kinds of products are of integers; arguments and results are torch's.

    Grids: `input_grid` of query, key and value, `output_grid` of what they are projected to, `chances` of the
    attention weights (within [0, 1]), and the output projection's own. With float activations there are none.
    """

    chances: Grid | None

    def equip(self, out_grid: Grid | None = None) -> None:
        """`out_grid`: of the output projection's input."""
        QLinear.adopt(self.out_proj, form=self.form, input_grid=out_grid)
        grid = self.input_grid
        self.chances = None if grid is None else FixedGrid(1.0, signed=False, bits=grid.bits)

    @staticmethod
    def unsupported(layer: nn.MultiheadAttention) -> str | None:
        """Why such a layer stays float, or None."""
        if not layer._qkv_same_embed_dim:
            return "MultiheadAttention with kdim or vdim of its own is not supported"
        if layer.bias_k is not None or layer.add_zero_attn:
            return "MultiheadAttention with add_bias_kv or add_zero_attn is not supported"
        return None

    @property
    def products(self) -> list[Product]:
        bias = None if self.in_proj_bias is None else "in_proj_bias"
        return [Product("in_proj_weight", bias, None if self.source is None else self.source[0])]

    def forward(self, part: int | Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """(n, length, width) -> the packed projection, or the third of it that `part` says."""
        return functional.linear(x, *self._third(int(part)))

    def rows(self, part: int) -> slice:
        """Of the packed projection: query's, key's or value's, or `WHOLE`."""
        return slice(None) if part == WHOLE else slice(part * self.embed_dim, (part + 1) * self.embed_dim)

    def _third(self, part: int) -> tuple[Tensor, Tensor | None]:
        (product,) = self.products
        weight, bias = self.snapped(product)
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
        """As nn.MultiheadAttention."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True: needs attn_mask, as torch's own does; give it the causal mask")
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
        """Query and value (n, heads, length, head_dim), key (n, heads, head_dim, length)."""
        if itself:
            parts = list(self._part(query, WHOLE).chunk(3, dim=-1))
        else:
            parts = [self._part(x, number) for number, x in enumerate((query, key, value))]
        q, k, v = (part.reshape(*part.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        return self._before_product(q), self._before_product(k.transpose(-2, -1)), self._before_product(v)

    def _part(self, x: Tensor, part: int) -> Tensor:
        x = x if self.input_grid is None else self.input_grid(x)
        # An argument, which hooks keep with what they keep of the call: they want tensors, and the batch comes last.
        told = torch.tensor(part) if is_hooked(self) else part
        projected: Tensor = nn.Module.__call__(self, told, x)
        return self._after_projection(projected)

    def _after_projection(self, x: Tensor) -> Tensor:
        """On the grid, all of it in one pass."""
        return x if self.output_grid is None else self.output_grid(x)

    def _before_product(self, x: Tensor) -> Tensor:
        """An export puts the grid here."""
        return x

    def _mask(self, padding: Tensor | None, attention: Tensor | None, scores: Tensor) -> Tensor | None:
        """What is added to the scores: minus infinity where nothing shall be seen."""
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
