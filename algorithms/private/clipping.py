"""How much a sample's gradient of norm n counts, for a bound C on what it may add to the sum.

    DP-SGD   min(1, C / n)
    NSGD     C / (n + r)
    Auto-S   C / (n + r)           with r = 0.01
    DP-PSAC  C / (n + r / (n + r))

Under each of them the scaled gradient has norm C at most: the sensitivity of the sum. NSGD and Auto-S weigh
a vanishing gradient by C / r; DP-PSAC weighs it by C, and none more than 1 / (2 sqrt(r) - r) times C, at
n = sqrt(r) - r.

Sources: Abadi et al., "Deep learning with differential privacy", CCS 2016; Yang, Zhang, Chen and Liu,
"Normalized/clipped SGD with perturbation for differentially private non-convex optimization", arXiv
2206.13033; Bu, Wang, Zha and Karypis, "Automatic clipping", NeurIPS 2023, arXiv 2206.07136; Xia, Shen, Yao,
Fu, Xu, Xu and Fu, "Differentially private learning with per-sample adaptive clipping", AAAI 2023, arXiv
2212.00328.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Rule = Literal["dp-sgd", "nsgd", "auto-s", "dp-psac"]


def weights(rule: Rule, norms: torch.Tensor, clip: float, regulariser: float) -> torch.Tensor:
    """Return the factor of each sample's gradient.

    Parameters
    ----------
    norms
        Euclidean norms of the gradients, of shape [samples].
    clip
        C, the bound on a scaled gradient's norm.
    regulariser
        r; DP-SGD has none.
    """
    import torch

    if rule == "dp-sgd":
        # Not clip / norms clamped: that is infinite, or not a number, for a gradient of zero.
        return clip / torch.clamp(norms, min=clip)
    if rule == "dp-psac":
        return clip / (norms + regulariser / (norms + regulariser))
    return clip / (norms + regulariser)
