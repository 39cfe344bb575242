"""Weights for a model that has none, such that a parity check of it means something.

Fresh networks hide mistakes: norms that multiply by one, biases of zero, residual branches scaled by 1e-5
or by zero. Whatever an export did to those would not show in the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def enliven(model: nn.Module, *, seed: int) -> None:
    """Replace each parameter that holds one value throughout by seeded noise of a telling size.

    Then amplify the picture tower's faint layers, or every picture has the same features: cosines between
    different ones were 0.999999 in PE-Core and are 0.3 now. Random texts are told apart as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                    scales = isinstance(module, _NORMS) and name == "weight"
                    _fill(parameter, scales=scales, generator=generator)

    _amplify(model.get_submodule("visual"))


def _amplify(visual: nn.Module) -> None:
    """Bring layers initialised far below unit gain up to it (LeCun et al. 1998, section 4.6)."""
    with torch.no_grad():
        for module in visual.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                gain = float(module.weight.std()) * module.weight[0].numel() ** 0.5
                if 0 < gain < 0.5:
                    module.weight.div_(gain)


def _fill(parameter: Tensor, *, scales: bool, generator: torch.Generator) -> None:
    constant = float(parameter.detach().flatten()[0])
    noise = torch.randn(parameter.shape, generator=generator)
    if scales and constant == 0:
        # It closes a residual branch. Branches at full strength would add up to activations that saturate
        # CLIP's attention pooling, where float32 itself is only good for a cosine of 0.999998.
        parameter.copy_(0.2 + 0.02 * noise)
    elif scales:
        parameter.copy_(1 + 0.1 * noise)
    elif constant == 0:
        parameter.copy_(0.02 * noise)
    elif abs(constant) < 0.01:  # the scale of a residual branch, which starts next to nothing
        parameter.copy_(0.1 + 0.02 * noise)
    else:
        parameter.copy_(constant * (1 + 0.1 * noise))


def settle_batch_norms(visual: nn.Module, images: Tensor) -> None:
    """Let batch norms measure ``images``, float32 (N, 3, H, W), as training would have.

    With statistics of their own making they would wipe the picture out within a few layers.
    """
    norms = [module for module in visual.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        visual(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
