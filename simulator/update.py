"""The local update rule: what a worker makes of its model and a gradient, the same on both clocks.

Plain SGD is the default, and what the theory of most algorithms covers. The others are those of
``torch.optim``, whose own functions compute them, so that a training script with the same optimiser has
the same bits. A rule with a state (momentum) keeps it per worker, as one flat vector; what happens to it
when models are averaged or replaced is for the algorithm to say, through ``worker.rule_state``.

==========  =====================================================  ==============  =====================
rule        update, with gradient g, step size s                   vectors kept    vectors moved by it
==========  =====================================================  ==============  =====================
sgd         x <- x - s g                                           0               3 (x, g, fresh x)
momentum    v <- m v + g;  x <- x - s v                            1 (v)           5
nesterov    v <- m v + g;  x <- x - s (g + m v)                    1 (v)           5
adamw       Loshchilov and Hutter, ICLR 2019                       2 (moments)     7
==========  =====================================================  ==============  =====================

Weight decay w adds w x to the gradient of the first three; AdamW takes s w x off the model itself. It moves
no further vectors, because x is read anyway. Sources: Polyak 1964 (heavy ball) and Sutskever et al., ICML
2013 (Nesterov), both in torch's form, where the step size multiplies v when it is applied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from algorithms.phantom import Phantom
from algorithms.worker import Tensor
from simulator.schedules import CONSTANT, ReadSchedule, step_sizes

if TYPE_CHECKING:
    import torch

    Slices = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Base of all update rules: weight decay, the schedule of the step size, and :meth:`apply`.

    ``state_start`` fills the state before its first update.

    Attributes
    ----------
    weight_decay
        Coefficient of the decay: added to the gradient times the model, or by AdamW taken off the model.
    schedule
        How the step size changes over a worker's updates.
    """

    state_start: ClassVar[float] = 0.0

    weight_decay: float = 0.0
    schedule: ReadSchedule = CONSTANT

    def __post_init__(self) -> None:
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight-decay must be 0 or more and finite, got {self.weight_decay!r}")

    @property
    def state_vectors(self) -> int:
        """Model-sized vectors that it keeps from update to update."""
        return 0

    @property
    def vectors_moved(self) -> int:
        """Model-sized vectors that an update reads or writes: x, gradient, fresh x, each kept one twice."""
        return 3 + 2 * self.state_vectors

    def apply(
        self,
        x: torch.Tensor,
        gradient: torch.Tensor,
        state: Sequence[torch.Tensor],
        begun: int,
        step_size: float,
    ) -> None:
        """Change the model and the state in place by one update.

        Parameters
        ----------
        x, gradient
            Of shape [parameters].
        state
            The vectors kept, each like ``x``.
        begun
            Updates that the state has seen.
        step_size
            Of this update.
        """
        raise TypeError(f"{type(self).__name__} defines no apply")


@dataclasses.dataclass(frozen=True)
class Sgd(Rule):
    """Plain SGD, without a state."""

    # Torch's first velocity is the gradient itself. Minus zero is what a sum leaves as it is, also -0.0.
    state_start: ClassVar[float] = -0.0

    @property
    def _momentum(self) -> float:
        return 0.0

    def apply(
        self,
        x: torch.Tensor,
        gradient: torch.Tensor,
        state: Sequence[torch.Tensor],
        begun: int,
        step_size: float,
    ) -> None:
        """Apply ``torch.optim.SGD``."""
        from torch.optim.sgd import sgd

        sgd(
            [x],
            [gradient],
            list(state) or [None],
            foreach=False,
            fused=False,
            weight_decay=self.weight_decay,
            momentum=self._momentum,
            lr=step_size,
            dampening=0.0,
            nesterov=isinstance(self, Nesterov),
            maximize=False,
        )


@dataclasses.dataclass(frozen=True)
class Momentum(Sgd):
    """SGD with heavy-ball momentum.

    Attributes
    ----------
    momentum
        Part of the velocity that an update keeps.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be 0 or more and below 1, got {self.momentum!r}")

    @property
    def _momentum(self) -> float:
        return self.momentum

    @property
    def state_vectors(self) -> int:
        """The velocity; none with momentum 0, which is plain SGD."""
        return 1 if self.momentum else 0


@dataclasses.dataclass(frozen=True)
class Nesterov(Momentum):
    """SGD with Nesterov's momentum."""


@dataclasses.dataclass(frozen=True)
class AdamW(Rule):
    """Adam with decoupled weight decay.

    Attributes
    ----------
    betas
        Part of the mean, and of the mean square, of the gradients that an update keeps.
    epsilon
        Keeps the quotient of both defined.
    """

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be 0 or more and below 1, got {list(self.betas)}")
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"epsilon must be above 0 and finite, got {self.epsilon!r}")

    @property
    def state_vectors(self) -> int:
        """Mean and mean square of the gradients."""
        return 2

    def apply(
        self,
        x: torch.Tensor,
        gradient: torch.Tensor,
        state: Sequence[torch.Tensor],
        begun: int,
        step_size: float,
    ) -> None:
        """Apply ``torch.optim.AdamW``."""
        import torch
        from torch.optim.adamw import adamw

        mean, square = state
        adamw(
            [x],
            [gradient],
            [mean],
            [square],
            [],
            [torch.tensor(float(begun))],
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=step_size,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            maximize=False,
        )


RULES: dict[str, type[Rule]] = {"sgd": Sgd, "momentum": Momentum, "nesterov": Nesterov, "adamw": AdamW}
"""The update rules by the names that scenarios use."""


class UpdateRule:
    """A worker's update rule at work: its place in the schedule, and its state.

    The schedule goes by the worker's iterations, so that a server which applies the gradients of many, and an
    algorithm that makes its steps itself, follow it too. A thread may do the updates while the algorithm goes
    on. The state may be read and replaced between updates.

    The state is one vector, the kept vectors behind each other. How many updates it has seen, which AdamW's
    correction of its bias needs, is counted apart: replacing the state keeps the count, None starts both
    anew.

    Parameters
    ----------
    rule
        What an update is.
    step_size
        The whole step size; None in a timing-only run.
    iterations
        The budget, which the schedule fills.
    """

    def __init__(self, rule: Rule, step_size: float | None, iterations: int) -> None:
        self._rule = rule
        self._sizes = (1.0,) if step_size is None else step_sizes(rule.schedule, step_size, iterations)
        ours = type(rule) in (Sgd, Momentum, Nesterov)
        self._plain = ours and not rule.weight_decay and not rule.state_vectors
        self._state: Tensor | None = None
        self._seen = 0

    @property
    def keeps_nothing(self) -> bool:
        """Whether its updates leave nothing behind, so that several workers may share it."""
        return self._plain

    @property
    def vectors_moved(self) -> int:
        """Model-sized vectors that an update reads or writes."""
        return self._rule.vectors_moved

    def step_size(self, iterations: int) -> float:
        """Return the step size of a worker that has begun so many iterations; 1 in a timing-only run."""
        return self._sizes[min(max(iterations, 1), len(self._sizes)) - 1]

    @property
    def state(self) -> Tensor | None:
        """A copy of the state, of [state vectors x parameters]; None where there is none yet, or never."""
        return None if self._state is None else self._state.clone()

    def set_state(self, state: Tensor | None) -> None:
        """Replace the state by a copy of another; None sets it back to its start."""
        self._state = None if state is None else state.clone()
        if state is None:
            self._seen = 0

    @property
    def seen(self) -> int:
        """Updates that the state has seen."""
        return self._seen

    def restore(self, state: Tensor | None, seen: int) -> None:
        """Go on with a state that has seen so many updates, as a run did that was saved."""
        self.set_state(state)
        self._seen = seen

    def apply(
        self, x: Tensor, gradient: Tensor | Sequence[Tensor], bounds: Slices, step_size: float
    ) -> Tensor:
        """Do an update and return the model after it, fresh.

        Parameters
        ----------
        x
            The model, of shape [parameters].
        gradient
            A whole gradient, or its slices in the order of ``bounds``.
        bounds
            Slices [low, high) of the flat vector, one per bucket.
        step_size
            Of this update, as it was when the update was called.

        Raises
        ------
        ValueError
            The state was replaced by one that does not fit the model.
        """
        if self._plain and self._state is None:
            return _plainly(x, gradient, bounds, step_size)
        size = self._rule.state_vectors * x.numel()
        if self._state is not None and self._state.numel() != size:
            raise ValueError(
                f"a state of {self._state.numel()} elements does not fit the update rule, which keeps "
                f"{self._rule.state_vectors} vectors of {x.numel()} elements"
            )
        if isinstance(x, Phantom):
            self._state = Phantom((size,), x.itemsize) if size else None
            return x
        from simulator.numerics import joined

        moved = x.clone()
        self._rule.apply(moved, joined(gradient, bounds), self._vectors(x, size), self._seen, step_size)
        self._seen += 1
        return moved

    def _vectors(self, x: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Return views of the state's vectors, which begin with the first update."""
        if not size:
            return ()
        if self._state is None:
            self._state = x.new_full((size,), self._rule.state_start)
        assert not isinstance(self._state, Phantom)
        return [self._state[low : low + x.numel()] for low in range(0, size, x.numel())]


def _plainly(x: Tensor, gradient: Tensor | Sequence[Tensor], bounds: Slices, step_size: float) -> Tensor:
    """Return the model after a plain step, in one pass."""
    if isinstance(x, Phantom):
        return x
    from simulator.numerics import stepped

    return stepped(x, gradient, step_size, bounds)
