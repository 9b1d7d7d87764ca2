"""Numbers that a module reads out of its own weights while it is recorded: `self.scale.item()`, `if self.flag:`.

A recording has sizes and no values, so torch takes these for decisions from the data. But weights are frozen in a
portable model: what is computed from them alone is one number, and it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from suture_contract.errors import SutureError
from suture_stitching.portable.diagnosis import RANDOM

#: What gives numbers of Python.
_READS = frozenset(
    {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__),
        *(Tensor.__index__, Tensor.equal, Tensor.allclose, torch.equal, torch.allclose, torch.is_nonzero),
    }
)
_FACTORIES = frozenset(
    {torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye}
)
#: What writes to a tensor, beside what ends in an underscore.
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_WRITES = frozenset(
    {Tensor.__setitem__, Tensor.data.__set__, *(getattr(Tensor, f"__i{name}__") for name in _OPERATORS)}  # type: ignore[attr-defined]
)
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class StateValues:
    """The values of tensors that depend on the state of `module` alone; each is computed when it is asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._real = _state(module)
        self._names: dict[int, str] = {}
        self._calls: dict[int, tuple[Tensor, Callable[[], Any]]] = {}
        self._written: set[int] = set()

    def read(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """Return what gives the number that this call reads out of the state; None where it reads none."""
        if func not in _READS or not self._are_known(args, kwargs):
            return None
        return lambda: self._computed(func, args, kwargs)

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Remember a call whose results depend on the state alone."""
        if _writes(func, kwargs):
            # Views of one tensor share its memory.
            written = (args[:1], kwargs.get("out"))
            self._written |= {_memory(leaf) for leaf in pytree.tree_leaves(written) if isinstance(leaf, Tensor)}
        elif isinstance(result, Tensor | tuple | list) and (func in _FACTORIES or _has_tensor(args, kwargs)):
            results = (result,) if isinstance(result, Tensor) else result
            if all(isinstance(value, FakeTensor) for value in results) and self._are_known(args, kwargs):
                for index, value in enumerate(results):
                    place = None if isinstance(result, Tensor) else index
                    self._calls[id(value)] = (value, partial(self._part, func, args, kwargs, place))

    def _part(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], place: int | None) -> Any:
        value = self._computed(func, args, kwargs)
        return value if place is None else value[place]

    def _computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(self._value, (tuple(args), dict(kwargs)))
        with _disable_current_modes(), torch.no_grad():
            before = torch.get_rng_state()
            value = func(*args, **kwargs)
            if not torch.equal(before, torch.get_rng_state()):
                torch.set_rng_state(before)
                raise SutureError(
                    "export.random",
                    f"the module decides by random numbers, of torch's {func.__name__}()",
                    hint=RANDOM,
                )
            return value

    def _value(self, leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        call = self._calls.get(id(leaf))
        return self._real[self._names[id(leaf)]] if call is None else call[1]()

    def _are_known(self, args: Any, kwargs: Any) -> bool:
        if not self._names:
            # While it records, torch has put tensors without values in the place of weights.
            own = _state(self._module)
            self._names = {id(tensor): name for name, tensor in own.items() if isinstance(tensor, FakeTensor)}
        leaves = pytree.tree_leaves((args, kwargs))
        return all(self._is_known(leaf) for leaf in leaves)

    def _is_known(self, leaf: object) -> bool:
        if not isinstance(leaf, FakeTensor):
            return not isinstance(leaf, _SYMBOLS)
        return (id(leaf) in self._names or id(leaf) in self._calls) and _memory(leaf) not in self._written


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _has_tensor(args: Any, kwargs: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs)))


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    return own or func in _WRITES or kwargs.get("out") is not None
