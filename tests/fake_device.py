"""A GPU that is not there: tensors on device "fakegpu" hold CPU data, and every operator that runs is looked at.

What CUDA would refuse is refused: operands on two devices, a CPU generator for a device's tensor, `.numpy()` on the device, and for an
Apple GPU float64. What the host would wait for is noted with its line: copies that are not from pinned memory, `.item()`, `nonzero`,
boolean indices. Launches are estimated: one for each operator that is no view. The device is torch's PrivateUse1 with Python's own hooks,
so autograd, `.to()`, optimisers and foreach take the ways they take for CUDA. Numbers are those of the CPU. It says nothing of time.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip(f"torch {torch.__version__} has no devices in Python", allow_module_level=True)
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "fakegpu"
aten = torch.ops.aten
MARK = 1 << 62  # in the seed of a generator on the device
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias", "detach", "lift_fresh"}
FREE |= {"alias", "_local_scalar_dense", "set_", "resize_", "is_same_size"}
MANY = {"sort": 3, "nonzero": 4, "embedding_dense_backward": 2, "convolution_backward": 3, "_foreach_norm": 2, "randperm": 4}  # about
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class _Backend:
    """torch.fakegpu, as far as torch asks."""

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None: ...

    is_available, manual_seed_all = is_initialized, manual_seed


backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)


class DeviceTensor(Tensor):
    """A tensor on the device; `elem` holds its numbers."""

    @staticmethod
    def __new__(cls, elem: Tensor) -> DeviceTensor:
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset(), "dtype": elem.dtype, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(cls, elem.size(), **layout)
        made.elem = elem
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({self.elem!r})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with torch.no_grad():
            made = self.detach().clone()
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if getattr(self, "_is_param", False) else made
        return memo[id(self)]

    def __reduce_ex__(self, proto: int) -> Any:
        raise RuntimeError("a device's tensor is written, which cannot be read where that device is not")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FakeDevice.current.run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


for _types in (sys.modules["torch.optim.optimizer"]._foreach_supported_types, _foreach_utils._foreach_supported_types):
    _types.append(DeviceTensor)

_Generator = torch.Generator


class _Known(type):
    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, _Generator)


class Generator(metaclass=_Known):
    """Stands in for torch.Generator: one on the device draws with the CPU's numbers, from seeds that are marked."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _OnDevice() if torch.device(device).type == NAME else _Generator(device)


class _OnDevice(_Generator):
    device = DEVICE

    def manual_seed(self, seed: int) -> _OnDevice:
        if FakeDevice.current.recording:
            raise RuntimeError("a generator is begun anew in a capture")
        super().manual_seed(seed | MARK)
        return self


class FakeDevice(TorchDispatchMode):
    """While its block runs, the device exists.

    Args:
        double: whether it has float64.

    Attributes:
        waits: (why, where) of everything that the host waited for.
        launches, operators: how many, in all and by name.
    """

    current: FakeDevice | None = None

    def __init__(self, double: bool = True):
        super().__init__()
        self.double, self.pinned = double, {}
        self.recording: FakeGraph | None = None
        self.clear()

    def clear(self) -> None:
        self.operators: collections.Counter[str] = collections.Counter()
        self.waits: list[tuple[str, str]] = []
        self.launches = 0

    def __enter__(self) -> FakeDevice:
        FakeDevice.current = self
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(Tensor, "pin_memory", lambda tensor, *_: self._pin(tensor))
        self._patch.setattr(torch, "Generator", Generator)
        # Views of a wrapped parameter cannot be made in inference mode; without gradients the operators are the same.
        self._patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else torch.enable_grad())
        self._threads = torch.autograd.set_multithreading_enabled(False)
        self._threads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._threads.__exit__(None, None, None)
        self._patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func._schema.name.partition("::")[2]
        if _composite(func):  # in inference mode, operators arrive before they are taken apart
            with self._again():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        flat = tree_flatten((args, kwargs))[0]
        device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        makes = device is not None and device.type == NAME
        if not makes and not any(isinstance(x, DeviceTensor) for x in flat):
            return func(*args, **kwargs)
        if name == "_to_copy":
            return self._to_copy(func, args[0], kwargs, makes, device)
        if name in ("copy_", "_copy_from"):
            return self._copy(args[0], args[1], (args[2] if len(args) > 2 else False) or kwargs.get("non_blocking", False))
        self._look(name, args, flat, kwargs)
        plain = {key: torch.device("cpu") if key == "device" and value is not None else value for key, value in kwargs.items()}
        implementation = INSTEAD.get(name, func)
        if self.recording:
            self.recording.before(func, args, kwargs)
        result = implementation(*tree_map(_inside, args), **tree_map(_inside, plain))
        self._count(func, name)
        if name in ("_local_scalar_dense", "equal", "is_same_size"):
            return result
        result = tree_map(lambda x: self._made(name, x) if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) else x, result)
        result = result if implementation is not func else return_and_correct_aliasing(func, args, kwargs, result)
        if self.recording and not func.is_view and not name.startswith(("empty", "new_empty")):
            self.recording.tape.append((implementation, args, plain, result))
        return result

    def _made(self, name: str, elem: Tensor) -> DeviceTensor:
        if elem.dtype == torch.float64 and not self.double:
            raise TypeError(f"{name} makes float64, which this device has not [{self._where()}]")
        return DeviceTensor(elem)

    def _look(self, name: str, args: Any, flat: list[Any], kwargs: dict[str, Any]) -> None:
        others = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, DeviceTensor)]
        if name in INDEXING:
            places = [place for place in args[1] if isinstance(place, Tensor)]
            if not isinstance(args[0], DeviceTensor):
                raise RuntimeError(f"{name}: indices on the device, of a tensor on the CPU [{self._where()}]")
            if any(not isinstance(place, DeviceTensor) for place in places):
                self._wait("an index on the CPU")
            if any(place.dtype in (torch.bool, torch.uint8) for place in places):
                self._wait("a boolean index")
            others = [x for x in args[2:3] if isinstance(x, Tensor) and not isinstance(x, DeviceTensor)]
        if any(other.dim() for other in others):
            raise RuntimeError(f"{name}: tensors on two devices [{self._where()}]")
        generator = kwargs.get("generator")
        if generator is not None and not generator.initial_seed() & MARK:
            raise RuntimeError(f"{name}: a generator on the CPU for a tensor on the device [{self._where()}]")
        if name in WAITING:
            self._wait(name)

    def _to_copy(self, func: Any, source: Tensor, kwargs: dict[str, Any], makes: bool, device: Any) -> Tensor:
        from_device, to_device = isinstance(source, DeviceTensor), makes or device is None
        plain = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
        elem = func(source.elem if from_device else source, **plain)
        if not (from_device and to_device):
            self._wait_for_copy(source, kwargs.get("non_blocking", False))
        if elem.dtype != source.dtype or (from_device and to_device):
            self._count(func, "_to_copy")
        made = self._made("to", elem) if to_device else elem
        if self.recording:
            self.recording.tape.append((func, (source,), plain, made))
        return made

    def _copy(self, into: Tensor, source: Tensor, quiet: bool) -> Tensor:
        if self.recording:
            self.recording.before(aten.copy_.default, (into,), {})
            self.recording.tape.append((aten.copy_.default, (into, source), {}, into))
        aten.copy_(_inside(into), _inside(source))
        if isinstance(into, DeviceTensor) and isinstance(source, DeviceTensor):
            self._count(aten.copy_.default, "copy_")
        else:
            self._wait_for_copy(source, quiet)
        return into

    def _wait_for_copy(self, source: Tensor, quiet: bool) -> None:
        if not (quiet and not isinstance(source, DeviceTensor) and source.data_ptr() in self.pinned):
            self._wait("a copy")

    def _wait(self, why: str) -> None:
        if self.recording:
            raise RuntimeError(f"the host waits in a capture: {why} [{self._where()}]")
        self.waits.append((why, self._where()))

    def _where(self) -> str:
        frame = sys._getframe(2)
        while frame is not None and "hsal_cli" not in frame.f_code.co_filename:
            frame = frame.f_back
        return "autograd" if frame is None else f"{frame.f_code.co_filename.split('hsal_cli/')[-1]}:{frame.f_lineno}"

    def _count(self, func: Any, name: str) -> None:
        if not func.is_view and name not in FREE:
            self.operators[name] += 1
            self.launches += MANY.get(name, 1)

    def _pin(self, tensor: Tensor) -> Tensor:
        made = tensor.clone()
        self.pinned[made.data_ptr()] = made  # held, so that no other tensor takes its place
        return made

    def _again(self) -> Any:
        return _Entered(self)


class FakeGraph:
    """As a CUDA graph: what runs in a block is recorded with the tensors that it reads and writes, without effect, and played back."""

    def __init__(self, generator: Any):
        self.generator, self.tape, self._held = generator, [], {}

    def warm(self) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        device, state = FakeDevice.current, self.generator.get_state()
        before, device.recording = (device.launches, device.operators.copy()), self
        try:
            yield
        finally:
            device.recording = None
            device.launches, device.operators = before
            self.generator.set_state(state)
            for elem, content in reversed(self._held.values()):
                elem.copy_(content)

    def before(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keeps what an operator is going to write over."""
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_flatten(args[place] if place < len(args) else kwargs.get(argument.name))[0]:
                    if isinstance(tensor, DeviceTensor):
                        self._held.setdefault(id(tensor.elem), (tensor.elem, tensor.elem.clone()))

    @torch.no_grad()
    def replay(self) -> None:
        FakeDevice.current.launches += 1
        for func, args, kwargs, made in self.tape:
            result = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
            for old, new in zip(tree_flatten(made)[0], tree_flatten(result)[0], strict=True):
                if isinstance(old, DeviceTensor) and old.elem.data_ptr() != new.data_ptr():
                    old.elem.copy_(new)


class _Entered:
    def __init__(self, mode: FakeDevice):
        self.mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self.mode)

    def __exit__(self, *_: Any) -> None:
        TorchDispatchMode.__exit__(self.mode, None, None, None)


def _inside(x: Any) -> Any:
    return x.elem if isinstance(x, DeviceTensor) else x


@functools.cache
def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _gru(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, 1), b.chunk(3, 1)
    r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
    n = torch.tanh(a_n + r * b_n)
    return n + z * (state - n), torch.cat([r, z, n, state, b_n], 1)


def _gru_backward(above: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    r, z, n, state, b_n = workspace.chunk(5, 1)
    by_n, by_z = above * (1 - z) * (1 - n * n), above * (state - n) * z * (1 - z)
    by_r = by_n * b_n * r * (1 - r)
    by_a, by_b = torch.cat([by_r, by_z, by_n], 1), torch.cat([by_r, by_z, by_n * r], 1)
    return by_a, by_b, above * z, None, None


INSTEAD = {"_thnn_fused_gru_cell": _gru, "_thnn_fused_gru_cell_backward": _gru_backward}  # the CPU has none

# torch.tensor(..., device=) goes below the dispatch mode, and asks the device for these.
_library = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return DeviceTensor(torch.empty(size, dtype=dtype))


def _copy_from(source: Tensor, into: Tensor, quiet: bool = False) -> Tensor:
    return FakeDevice.current._copy(into, source, quiet)


for _name, _function in (("empty_strided", _empty_strided), ("empty.memory_format", _empty), ("_copy_from", _copy_from)):
    _library.impl(_name, _function, "PrivateUse1")
