"""Per-example gradients of each layer type, from its input and the gradient of its output. Depends on torch layers.

Does not know hooks or Opacus. For each trained parameter a sampler must return what autograd gives for each example
alone; tests check this. Tensors may have any memory format, with the examples on axis 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.per_example.contributions import Contribution, Dense, Outer

# layer, its input (n, ...), gradient of the summed loss for its output (n, ...) -> gradients of trained parameters
Sampler = Callable[[nn.Module, Tensor, Tensor], list[Contribution]]
# Bytes of patches per step: they are read right after they are written, ideally from the cache.
_PATCH_BYTES = 1 << 21
ALIGNED = 16  # float32 values: 64 bytes, the widest vector of current CPUs


def linear(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    """(n, in) or (n, ..., in): one outer product per example, or the sum of several."""
    found: list[Contribution] = []
    weight, bias = trained(layer, "weight"), trained(layer, "bias")
    if x.dim() == 1:
        x, grad = x.unsqueeze(0), grad.unsqueeze(0)
    if weight is not None and x.dim() == 2:
        found.append(Outer(weight, grad, x))
    elif weight is not None:
        left, right = grad.flatten(1, -2), x.flatten(1, -2)
        (places, out), columns = left.shape[1:], right.shape[2]
        more = _to_align(places, out, columns)
        products = functional.pad(left, (0, more[0])).transpose(1, 2) @ functional.pad(right, (0, more[1]))
        found.append(Dense(weight, products[:, :out, :columns].reshape(len(x), out * columns)))
    if bias is not None:
        # Its rows may be set to zero later; the factors of the weight's gradient must not change.
        found.append(Dense(bias, grad.clone() if grad.dim() == 2 else grad.flatten(1, -2).sum(1)))
    return found


def conv1d(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    assert isinstance(layer, nn.Conv1d)
    x = _padded(layer, x).unsqueeze(2)
    return _convolution(layer, x, grad.unsqueeze(2), (1, *layer.kernel_size), (1, *layer.stride), (1, *layer.dilation))


def conv2d(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    """Gradients of Conv2d with any stride, padding, dilation and groups."""
    assert isinstance(layer, nn.Conv2d)
    return _convolution(layer, _padded(layer, x), grad, layer.kernel_size, layer.stride, layer.dilation)


def _padded(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    around = layer._reversed_padding_repeated_twice
    if not any(around):
        return x
    return functional.pad(x, around, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor,
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
) -> list[Contribution]:  # fmt: skip
    """One matrix product per example and group: gradients at all positions times the input patches."""
    found: list[Contribution] = []
    weight, bias = trained(layer, "weight"), trained(layer, "bias")
    n, out, high, wide = grad.shape
    grad = grad.permute(0, 2, 3, 1).contiguous()  # a view for a channels_last tensor
    if weight is not None:
        x = x.permute(0, 2, 3, 1).contiguous()
        groups, inner = layer.groups, x.shape[3] // layer.groups
        s = x.stride()
        window = (high, wide, *kernel, groups, inner)
        steps = (s[1] * stride[0], s[2] * stride[1], s[1] * dilation[0], s[2] * dilation[1], inner, 1)
        patches = x.as_strided((n, *window), (s[0], *steps))
        places, columns = high * wide, kernel[0] * kernel[1] * inner
        of_group = out // groups
        by_group, more = grad.view(n, places, groups, of_group), _to_align(places, of_group, columns)
        # A product that starts at an unaligned address may be rounded differently from its neighbour's.
        by_group = functional.pad(by_group, (0, more[0])).permute(0, 2, 3, 1)
        rows = x.new_empty((n, groups, of_group + more[0], columns + more[1]))
        at_once = max(1, _PATCH_BYTES // max(1, places * columns * groups * x.element_size()))
        for start in range(0, n, at_once):
            part = slice(start, start + at_once)
            seen = patches[part].permute(0, 5, 1, 2, 3, 4, 6).reshape(len(patches[part]), groups, places, columns)
            torch.matmul(by_group[part], functional.pad(seen, (0, more[1])), out=rows[part])
        rows = rows[:, :, :of_group, :columns].reshape(n, out * columns)
        found.append(Dense(weight, rows, (out, *kernel, inner), (0, 3, 1, 2)))
    if bias is not None:
        found.append(Dense(bias, grad.view(n, high * wide, out).sum(1)))
    return found


def _to_align(places: int, out: int, columns: int) -> tuple[int, int]:
    """Outputs and columns to add, so that the three matrices of each example's product start at whole vectors."""
    if not any(size % ALIGNED for size in (places * out, places * columns, out * columns)):
        return 0, 0
    return -out % ALIGNED, -columns % ALIGNED


def group_norm(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    assert isinstance(layer, nn.GroupNorm)
    normed = functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return _affine(layer, normed, grad, lambda t: t.flatten(2).sum(2) if t.dim() > 2 else t.clone())


def layer_norm(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    assert isinstance(layer, nn.LayerNorm)
    normed, own = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps), len(layer.normalized_shape)
    return _affine(layer, normed, grad, lambda t: t.flatten(-own).flatten(1, -2).sum(1) if t.dim() > own + 1 else t)


def _affine(layer: nn.Module, normed: Tensor, grad: Tensor, reduced: Callable[[Tensor], Tensor]) -> list[Contribution]:
    found: list[Contribution] = []
    weight, bias = trained(layer, "weight"), trained(layer, "bias")
    if weight is not None:
        found.append(Dense(weight, reduced(normed * grad).flatten(1)))
    if bias is not None:
        found.append(Dense(bias, reduced(grad).flatten(1).clone()))
    return found


def embedding(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    """Gradients go to the table rows that an example looks up; the padding row gets none."""
    assert isinstance(layer, nn.Embedding)
    weight = trained(layer, "weight")
    if weight is None:
        return []
    n, rows = len(x), grad.new_zeros((len(x) * layer.num_embeddings, layer.embedding_dim))
    own = torch.arange(n, device=x.device).view(n, *[1] * (x.dim() - 1)) * layer.num_embeddings
    rows.index_add_(0, (x + own).flatten(), grad.reshape(-1, layer.embedding_dim))
    if layer.padding_idx is not None:
        rows.view(n, *weight.shape)[:, layer.padding_idx] = 0.0
    return [Dense(weight, rows.view(n, weight.numel()))]


def trained(layer: nn.Module, name: str) -> nn.Parameter | None:
    """The layer's parameter of that name, or None if it is not trained."""
    parameter = getattr(layer, name)
    return parameter if isinstance(parameter, nn.Parameter) and parameter.requires_grad else None


# By exact type: a subclass may compute something different.
SAMPLERS: dict[type[nn.Module], Sampler] = {
    nn.Linear: linear,
    nn.Conv1d: conv1d,
    nn.Conv2d: conv2d,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}


def register(kind: type[nn.Module], sampler: Sampler) -> None:
    """Add a sampler for a layer of another package. It must return gradients for all parameters of the layer."""
    SAMPLERS[kind] = sampler
