"""A CUDA card without a card: what a CPU build of torch can tell about work on one.

Inside ``fake_card()`` tensors "on cuda" are fake (torch's own ``FakeTensor``): shapes, dtypes, devices, strides and
lifetimes are real, nothing is computed and no memory is taken. What lies on the CPU stays real as long as nothing of
the card goes into it, so that schedules, seeds and control flow are what they are. What comes from the card is zeros,
and true where it is boolean.

    with fake_card(memory=8e9) as card:
        network = card.takes(UniViGU(config, device="meta", dtype=torch.bfloat16)).eval()
        card.begin()
        text_to_video(network, noise=torch.zeros(1, 16, 21, 60, 104, device="cuda"), ...)
        card.waits, card.copies, card.launches, card.peak - card.base

Counted are calls of aten: kernels, workspaces and fragmentation are a card's own. Attention and RMS norm are one kernel
there and are made so here. Needs nothing but torch; where torch lacks the private symbol, ``missing()`` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GUARDS, CUDA, META = "_ZN3c104impl26device_guard_impl_registryE", 1, 14
ROUNDED_TO = 512  # bytes: the caching allocator's smallest block
OURS = ("/uvg_core/", "/nodes/comfy/", "/nodes/", "/comfy/")
LEFT_OUT = ("/comfy_kitchen/", "/site-packages/", "fake_card.py")
NO_LAUNCH = {
    "_reshape_alias", "_unsafe_view", "_pin_memory", "alias", "as_strided", "chunk", "detach", "device", "diagonal",
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "expand", "is_pinned", "lift",
    "lift_fresh", "narrow", "permute", "record_stream", "select", "set_", "slice", "split", "split_with_sizes",
    "squeeze", "stride", "sym_numel", "sym_size", "sym_storage_offset", "sym_stride", "t", "transpose", "unbind",
    "unfold", "unsafe_split", "unsqueeze", "view", "view_as_complex", "view_as_real", "is_same_size",
    "_has_compatible_shallow_copy_type",
}  # fmt: skip
READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")


def missing() -> str:
    """Why there are no fake cards here; empty where there are. Lends CUDA the device guard of meta tensors, which does
    nothing, where a build of torch has none for CUDA."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not library.exists():
        return "fake cards need torch on Linux (no libc10.so)"
    try:
        slots = (ctypes.c_void_p * (META + 1)).in_dll(ctypes.CDLL(str(library)), GUARDS)
    except (OSError, ValueError):
        return f"fake cards need a private symbol that torch {torch.__version__} does not have"
    if not slots[META]:
        return f"fake cards need meta tensors' device guard, which torch {torch.__version__} keeps elsewhere"
    slots[CUDA] = slots[CUDA] or slots[META]
    return ""


class Copy(NamedTuple):
    """Over the bus. ``waits``: the program stands still until the card has done everything before it: true of any copy
    that is not asked to go on meanwhile, and of any that goes out of or into memory that is not pinned."""

    way: str  # "to the card" | "to the host"
    waits: bool
    nbytes: int
    where: str


class Alive(NamedTuple):
    nbytes: int
    made_by: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    where: str


class FakeCard(TorchDispatchMode):
    """What is asked of a card, from the last ``begin()`` on.

    ``waits``: Counter of (operation, where): reads of values, copies that wait, ``synchronize``. ``copies``: Counter of
    ``Copy``, waiting or not. ``launches``: Counter of operations that run a kernel. ``traffic``: bytes that each
    operation reads and writes. ``wide``: Counter of (operation, dtype, shape, where) of large tensors in four bytes or
    more. ``masked``: Counter of (kernel of attention, whether it was given a mask). ``peak``, ``base``, ``now``: bytes
    alive on the card: at most, at ``begin()``, at present; ``at_peak``: what was alive then, by size.
    """

    def __init__(self, memory: float, many: int = 10_000_000) -> None:
        super().__init__()
        self.memory, self.many = memory, many
        self.now = 0
        self._known: dict[int, Alive] = {}
        self._pinned: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """Count anew; what is alive is the ``base``."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[Copy] = Counter()
        self.launches: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.wide: Counter[tuple[str, torch.dtype, tuple[int, ...], str]] = Counter()
        self.masked: Counter[tuple[str, bool]] = Counter()
        self.orders: list[tuple[Any, ...]] = []  # what streams and events were asked for
        self.base = self.peak = self.now
        self.peak_where, self._at_peak = "", list[Alive]()

    @property
    def at_peak(self) -> list[Alive]:
        return sorted(self._at_peak, key=lambda alive: -alive.nbytes)

    @property
    def beside(self) -> int:
        """The peak beside what was there at ``begin()``."""
        return self.peak - self.base

    def takes(self, module: Module, grad: bool = False) -> Module:
        """The module (from ``device="meta"``, or a small real one) with its weights and buffers on the card."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(self.like(weight), requires_grad=grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.like(buffer)
        return module

    def like(self, tensor: Tensor) -> Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cuda")

    def per(self, fewer: Counter[Any], count: int = 1) -> dict[str, float]:
        """Launches beyond those of ``fewer``, by ``count`` (blocks, steps)."""
        names = self.launches.keys() | fewer.keys()
        found = {name: (self.launches[name] - fewer[name]) / count for name in names}
        return {name: number for name, number in sorted(found.items(), key=lambda pair: -pair[1]) if number}

    # What torch asks for

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), op.overloadpacket.__name__
        if name == "device":  # asked for all the time
            return op(*args)
        ins = _tensors((args, kwargs))
        fake = any(isinstance(tensor, FakeTensor) for tensor in ins)
        target = torch.device(kwargs.get("device") or "cpu").type
        if name in ("is_pinned", "_pin_memory") and not fake:
            return self._pin(name, args[0])
        if not fake and target != "cuda":
            if kwargs.pop("pin_memory", False):
                return self._pin("_pin_memory", self._real(op, args, kwargs))
            return self._real(op, args, kwargs)
        on_card = any(tensor.device.type == "cuda" for tensor in ins)
        if name in READS and on_card:
            return self._read(name, op, args, kwargs)
        if any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in _indices(name, args)
        ):
            self.waits[(f"{name} by a mask", self.where())] += 1
        if name in ("_to_copy", "copy_"):
            out = self._copied(name, op, args, kwargs)
        else:
            _forget(ins)
            out = op(*args, **kwargs)
        outs = [out] if isinstance(out, Tensor) else _tensors(out)
        _forget(outs)
        if name not in NO_LAUNCH and any(tensor.device.type == "cuda" for tensor in (*ins, *outs)):
            self.launches[name] += 1
            self.traffic[name] += sum(_bytes(tensor) for tensor in (*ins, *outs) if tensor.device.type == "cuda")
        self._keep_books(name, ins, outs)
        return out

    def _real(self, op: Any, args: Any, kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return op(*args, **kwargs)

    def _read(self, name: str, op: Any, args: Any, kwargs: Any) -> Any:
        self.waits[(name, self.where())] += 1
        given: Tensor = args[0]
        if name == "equal":
            return False
        if name in ("_local_scalar_dense", "is_nonzero"):
            return True if given.dtype == torch.bool else 0.5 if given.dtype.is_floating_point else 0
        if name == "nonzero":
            return torch.zeros(0, given.ndim, dtype=torch.long, device=given.device)
        return op(*args, **kwargs)

    def _copied(self, name: str, op: Any, args: Any, kwargs: Any) -> Any:
        """A change of device, of dtype, or a plain copy."""
        source: Tensor = args[1] if name == "copy_" else args[0]
        into = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        if source.device.type == into.type:
            return op(*args, **kwargs)
        goes_on = bool(kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False))
        host = source if into.type == "cuda" else args[0] if name == "copy_" else None
        scalar = name == "copy_" and into.type == "cuda" and source.ndim == 0 and not isinstance(source, FakeTensor)
        if not scalar:  # the value of a number on the CPU goes along with the kernel
            waits = not goes_on or not self._is_pinned(host)
            way = "to the card" if into.type == "cuda" else "to the host"
            self.copies[Copy(way, waits, _bytes(source), self.where())] += 1
            if waits:
                self.waits[(f"copy {way}", self.where())] += 1
        if into.type == "cuda":
            if name == "copy_":
                return args[0]
            shape, dtype = tuple(source.shape), kwargs.get("dtype") or source.dtype
            return torch.ops.aten.empty.memory_format(shape, dtype=dtype, device=into)
        if name == "copy_":
            return args[0]
        with unset_fake_temporarily():
            dtype = kwargs.get("dtype") or source.dtype
            return (torch.ones if dtype == torch.bool else torch.zeros)(tuple(source.shape), dtype=dtype)

    def _pin(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return self._is_pinned(tensor)
        with unset_fake_temporarily():
            pinned = tensor.clone() if tensor.numel() < self.many else torch.empty_like(tensor)
            storage = pinned.untyped_storage()
            self._pinned.add(storage._cdata)
            weakref.finalize(storage, self._pinned.discard, storage._cdata)
            return pinned

    def _is_pinned(self, host: Tensor | None) -> bool:
        return host is not None and host.untyped_storage()._cdata in self._pinned

    def _keep_books(self, name: str, ins: list[Tensor], outs: list[Tensor]) -> None:
        given = {tensor.untyped_storage()._cdata for tensor in ins}
        for tensor in outs:
            if tensor.device.type != "cuda":
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in given or key in self._known:
                continue
            size = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
            self.now += size
            where = self.where() if size >= self.many else ""
            self._known[key] = Alive(size, name, tensor.dtype, tuple(tensor.shape), where)
            weakref.finalize(storage, self._gone, key, size)
            if self.now > self.peak:
                self.peak, self._at_peak, self.peak_where = self.now, list(self._known.values()), name
            if tensor.dtype.itemsize >= 4 and tensor.numel() >= self.many:
                self.wide[(name, tensor.dtype, tuple(tensor.shape), where)] += 1

    def _gone(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size

    @staticmethod
    def where() -> str:
        """The innermost line of the project, or of ComfyUI, that is running."""
        frame = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            for folder in OURS:
                if folder in path and not any(other in path for other in LEFT_OUT):
                    return f"{folder.strip('/')}/{path.rpartition(folder)[2]}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back  # type: ignore[assignment]
        return "elsewhere"


Module = TypeVar("Module", bound=nn.Module)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _indices(name: str, args: tuple[Any, ...]) -> list[Any]:
    return list(args[1]) if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []


def _forget(tensors: list[Tensor]) -> None:
    """Fake tensors remember the value of small ones that were made from the host; a card does not tell it."""
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):
            tensor.constant = None


# Kernels that a CPU build does not choose by itself


def _attention(card: FakeCard, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What CUDA takes for two-byte numbers: flash attention without a mask, the memory-efficient one with one. Both
    have their backward pass. Elsewhere torch's own choice."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type != "cuda":
            return real(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if torch.is_autocast_enabled("cuda"):
            lower = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(lower), key.to(lower), value.to(lower)
            attn_mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(lower)
        if attn_mask is None and query.dtype.itemsize == 2:
            card.masked[("flash", False)] += 1
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
        card.masked[("efficient", attn_mask is not None)] += 1
        needs_grad = torch.is_grad_enabled() and query.requires_grad
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
            attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, needs_grad)[0]

    return attend


def _rms_norm(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One kernel, which layer norm's stands for (as much is read, written and kept)."""

    def norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            x, weight = x.float(), None if weight is None else weight.float()
        if x.device.type != "cuda" or (weight is not None and weight.dtype != x.dtype):
            return real(x, normalized_shape, weight, eps)
        return torch.ops.aten.native_layer_norm(x, list(normalized_shape), weight, None, eps or 1e-6)[0]

    return norm


# Streams and events: they order nothing here, but write down who waits for whom


class FakeStream:
    def __init__(self, device: Any = None, priority: int = 0, *, name: str = "side", card: Any = None) -> None:
        self.device, self.name, self.card = device, name, card

    def wait_stream(self, other: FakeStream) -> None:
        self.card.orders.append((self.name, "waits for stream", other.name))

    def wait_event(self, event: FakeEvent) -> None:
        self.card.orders.append((self.name, "waits for event of", event.recorded_by))

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = FakeEvent(card=self.card) if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.card.waits[("synchronize", FakeCard.where())] += 1

    def query(self) -> bool:
        return True


class FakeEvent:
    def __init__(self, *args: Any, card: Any = None, **kwargs: Any) -> None:
        self.card, self.recorded_by = card, ""

    def record(self, stream: Any = None) -> None:
        current: Any = stream or torch.cuda.current_stream()
        self.recorded_by = current.name
        self.card.orders.append((self.recorded_by, "records an event"))

    def wait(self, stream: Any = None) -> None:
        current: Any = stream or torch.cuda.current_stream()
        current.wait_event(self)

    def synchronize(self) -> None:
        self.card.waits[("synchronize", FakeCard.where())] += 1

    def query(self) -> bool:
        return True


def _streams(card: FakeCard) -> dict[str, Any]:
    current = [FakeStream(name="main", card=card)]

    @contextlib.contextmanager
    def on(stream: FakeStream | None) -> Iterator[None]:
        current.append(stream or current[-1])
        try:
            yield
        finally:
            current.pop()

    def synchronize(device: Any = None) -> None:
        current[-1].synchronize()

    return {
        "Stream": lambda *args, **kwargs: FakeStream(*args, **kwargs, card=card),
        "Event": lambda *args, **kwargs: FakeEvent(*args, **kwargs, card=card),
        "current_stream": lambda device=None: current[-1],
        "stream": on,
        "synchronize": synchronize,
    }


@contextlib.contextmanager
def fake_card(memory: float = 80e9) -> Iterator[FakeCard]:
    """A card of so many bytes, as ``cuda``. Raises RuntimeError where ``missing()`` says why there is none."""
    reason = missing()
    if reason:
        raise RuntimeError(reason)
    with contextlib.ExitStack() as inside:
        card = FakeCard(memory)

        def replace(place: Any, name: str, new: Any) -> None:
            inside.enter_context(mock.patch.object(place, name, new))

        replace(F, "scaled_dot_product_attention", _attention(card, F.scaled_dot_product_attention))
        replace(F, "rms_norm", _rms_norm(F.rms_norm))
        for name, new in _streams(card).items():
            replace(torch.cuda, name, new)
        replace(torch.cuda, "mem_get_info", lambda device=None: (int(card.memory) - card.now, int(card.memory)))
        for name in ("memory_allocated", "memory_reserved"):
            replace(torch.cuda, name, lambda device=None: card.now)
        replace(torch.cuda, "get_per_process_memory_fraction", lambda device=None: 1.0)
        replace(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        replace(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        replace(torch.Tensor, "record_stream", lambda tensor, stream: card.orders.append(("kept for", stream.name)))
        inside.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        inside.enter_context(card)
        yield card
