"""A tensor without values: what an algorithm handles in a timing-only run.

A :class:`Phantom` has a shape and an element size. Its operators and torch's functions return
phantoms at the price of a few attribute look-ups, so that an algorithm's own lines run unchanged.
It has no values: control flow that looks at them is refused with the reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
# fmt: off
_ELEMENTWISE = frozenset(
    {
        "abs", "add", "addcdiv", "addcmul", "ceil", "clamp", "clone", "copysign", "detach", "div",
        "divide", "empty_like", "exp", "floor", "lerp", "log", "maximum", "minimum", "mul", "multiply",
        "nan_to_num", "neg", "negative", "ones_like", "pow", "rand_like", "randn_like", "relu", "round",
        "rsqrt", "sigmoid", "sign", "sqrt", "square", "sub", "subtract", "tanh", "true_divide", "where",
        "zeros_like",
    }
)
"""Torch functions whose result has the outline of their first phantom."""
# fmt: on


class TimingOnly(RuntimeError):
    """An algorithm asked for the value of a tensor in a run that has no numerics."""


class Phantom:
    """A tensor's outline.

    Parameters
    ----------
    shape
        Extents, as of a tensor.
    itemsize
        Bytes of an element.
    """

    __slots__ = ("itemsize", "nbytes", "shape")

    def __init__(self, shape: Sequence[int], itemsize: int = 4) -> None:
        self.shape = tuple(shape)
        self.itemsize = itemsize
        self.nbytes = math.prod(self.shape) * itemsize

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def clone(self) -> Phantom:
        """Return a phantom of the same outline; there are no values to copy, so it is this one."""
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Phantom:
        if isinstance(index, int):
            return _outline(self.shape[1:], self.itemsize)
        return _outline((len(range(*index.indices(self.shape[0]))), *self.shape[1:]), self.itemsize)

    def _elementwise(self, *_: object) -> Phantom:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = _elementwise
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = _elementwise
    __iadd__ = __isub__ = __imul__ = __itruediv__ = _elementwise

    @property
    def dtype(self) -> Any:
        """The torch type of the elements, told by their size."""
        import torch

        return {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[self.itemsize]

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Phantom:
        """Answer a torch function with the outline of its result: element-wise, or a concatenation.

        Raises
        ------
        TimingOnly
            Any other function, whose result has an outline that is not known here.
        """
        name = getattr(function, "__name__", "")
        values = [*args, *(kwargs or {}).values()]
        listed = [entry for value in values if isinstance(value, (list, tuple)) for entry in value]
        phantoms = [value for value in (*values, *listed) if isinstance(value, Phantom)]
        first = phantoms[0]
        if name in _CONCATENATIONS:
            return Phantom((sum(len(part) for part in phantoms), *first.shape[1:]), first.itemsize)
        if name in _ELEMENTWISE:
            return first
        raise TimingOnly(
            f"torch.{name} is not known in a timing-only run, where tensors have no values; "
            "give the scenario an objective"
        )

    def _refuse(self, *_: object) -> NoReturn:
        """Refuse to give a value: there is none in a timing-only run."""
        raise TimingOnly(
            "this algorithm's control flow depends on the value of a tensor, which a timing-only run "
            "does not have; give the scenario an objective"
        )

    __bool__ = __float__ = __int__ = __lt__ = __gt__ = __le__ = __ge__ = item = tolist = _refuse
    __eq__ = __ne__ = sum = mean = norm = dot = max = min = any = all = _refuse
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Phantom(shape={self.shape}, itemsize={self.itemsize})"


@functools.lru_cache(maxsize=256)
def _outline(shape: tuple[int, ...], itemsize: int) -> Phantom:
    """Return a phantom of that outline, the same for all who ask: it has nothing that could be changed."""
    return Phantom(shape, itemsize)
