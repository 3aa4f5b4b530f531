"""The privacy that a number of iterations spends, told by Opacus.

Every iteration is a Gaussian mechanism on a Poisson sample: with rate q, noise of sigma C on a sum of
sensitivity C, and neighbours that differ by one sample added or removed. ``rdp`` composes Renyi divergences
(Mironov et al., 2019; converted as in Balle et al., 2020); ``prv`` composes privacy loss distributions
numerically (Gopi, Lee and Wutschitz, NeurIPS 2021), which is tighter and slower; what it returns is its upper
bound.
"""

from __future__ import annotations

import functools
import warnings
from typing import Literal

Accountant = Literal["rdp", "prv"]


def epsilon(accountant: Accountant, rate: float, noise: float, iterations: int, delta: float) -> float:
    """Return epsilon after so many iterations.

    Parameters
    ----------
    rate
        Probability with which a sample takes part in an iteration.
    noise
        Standard deviation of the noise on the sum, in units of the sensitivity.
    delta
        Probability that the promise of epsilon fails.
    """
    if not iterations:
        return 0.0
    if accountant == "rdp":
        from opacus.accountants.analysis import rdp

        orders, spent = _divergences(rate, noise)
        with warnings.catch_warnings():
            # It warns where the best order is the largest or smallest one; the bound holds all the same.
            warnings.simplefilter("ignore")
            told, _ = rdp.get_privacy_spent(
                orders=orders, rdp=[iterations * each for each in spent], delta=delta
            )
        return float(told)
    from opacus.accountants import PRVAccountant

    account = PRVAccountant()
    account.history = [(noise, rate, iterations)]
    return float(account.get_epsilon(delta))


@functools.lru_cache(maxsize=64)
def _divergences(rate: float, noise: float) -> tuple[list[float], list[float]]:
    """Return orders, and the Renyi divergence of one iteration at each."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    orders = list(RDPAccountant.DEFAULT_ALPHAS)
    return orders, [
        float(each) for each in rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)
    ]
