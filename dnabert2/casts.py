"""The weights of a model in the dtype of autocast, cast together.

    torch.func.functional_call(model, cast_weights(model, torch.bfloat16), (), batch)

Autocast casts each weight by a kernel of its own, and each gradient back: 280 kernels of a step of the 117M, most of
them over a few thousand numbers. Here a few do it; what is computed is the same, bit for bit.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that took no part has none
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(cast, tensors)
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor | None):
        present = [gradient for gradient in gradients if gradient is not None]
        cast = [torch.empty_like(gradient, dtype=torch.float32) for gradient in present]
        if present:
            torch._foreach_copy_(cast, present)
        return None, *(None if gradient is None else cast.pop(0) for gradient in gradients)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """
    By their names the float32 weights of DNABERT-2 that its forward casts under autocast: those of linear layers, and
    of LayerNorm where it is of low precision. Gradients reach the weights themselves, in float32.
    """
    weights = {
        f"{name}.{own_name}": weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or getattr(module, "low_precision", False)
        for own_name, weight in module.named_parameters(recurse=False)
    }
    cast = {}
    for is_trained in (True, False):  # apart, because all that one call returns wants gradients if any input does
        part = {name: weight for name, weight in weights.items() if weight.requires_grad == is_trained}
        if part:
            cast |= dict(zip(part, _CastTogether.apply(dtype, *part.values()), strict=True))
    return cast
