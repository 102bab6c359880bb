"""A GPU that is not there: host code runs on CPU tensors, every kernel is compiled for the GPU by the real compiler, nothing is computed.

    with dry(TARGETS["sm_90"]) as launches:
        ...  # any call that launches Triton kernels, with CPU tensors

What a kernel would write stays as it was: shapes, launches and what kernels need are those of the GPU, values mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from seqc.backends.triton.binaries import Binary, binary_file, examined
from seqc.backends.triton.operations import Operations, distinct, size
from seqc.backends.triton.targets import Target

THREADS = 1024  # of a block, at most
REGISTERS = 65536  # of a processor
DEVICES = count(1000)  # Triton keeps what it compiled by the number of a device: each dry run has one of its own


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel, or an operation of PyTorch, which has no grid and no binary.

    bytes: of the tensors that a kernel is given, each once; those that an operation reads and writes.
    """

    name: str
    bytes: int
    grid: tuple[int, ...] = ()
    warps: int = 0
    stages: int = 0
    binary: Binary | None = None


class NotCompiled(Exception):
    """A kernel that the compiler does not take, or the GPU could not load."""

    def __init__(self, kernel: str, cause: BaseException):
        while cause.__cause__ is not None:  # Triton's errors in a function lie in those of its callers
            cause = cause.__cause__
        said = [line.strip() for line in str(cause).splitlines() if line.strip()]
        self.kernel, self.reason = kernel, said[-1] if said else type(cause).__name__
        super().__init__(f"{kernel}: {self.reason}")


@contextmanager
def dry(target: Target, configurations: int = 1) -> Iterator[list[Launch]]:
    """Inside, `target` is the GPU, and the list grows by what is launched. Raises NotCompiled.

    configurations: how many of an autotuned kernel are tried, from the first on; the one that spills least is taken.
    """
    launches: list[Launch] = []
    with _driven(Driver(target, launches), configurations), Operations(lambda name, moved: launches.append(Launch(name, moved))):
        yield launches


@contextmanager
def idle(target: Target) -> Iterator[None]:
    """Inside, `target` is the GPU, and a launch of a kernel does nothing: what a call takes is the host's own time. Raises NotCompiled."""
    with _driven(Driver(target, [], Idle), 1):
        yield


@contextmanager
def _driven(driver: Driver, configurations: int) -> Iterator[None]:
    knobs, tuner = triton.knobs.runtime, triton.runtime.Autotuner
    prune = tuner.prune_configs
    replaced = (
        (triton.runtime.driver, {"_active": driver}),
        (knobs, {"jit_cache_hook": driver.compiles, "jit_post_compile_hook": driver.compiled}),
        # What does not fit is reported, and does not end the run. The properties of the device say what fits.
        (triton.compiler.compiler, {"max_shared_mem": lambda device: sys.maxsize}),
        (tuner, {"prune_configs": lambda self, given: prune(self, given)[:configurations]}),
        (torch.cuda, _device_as_told(driver.target)),
        (triton.compiler.CompiledKernel, {"n_spills": property(_spilled, lambda kernel, of_no_driver: None)}),
        (triton.compiler.CompiledKernel, {"module": property(_module, _keep)}),
    )
    with ExitStack() as stack:
        for owner, values in replaced:
            stack.enter_context(_replaced(owner, values))
        knobs.kernel_load_end_hook.add(driver.loaded)
        stack.callback(knobs.kernel_load_end_hook.remove, driver.loaded)
        try:
            yield
        except Exception as error:
            if driver.compiling or isinstance(error, triton.errors.TritonError):
                raise NotCompiled(driver.kernel, error) from error
            raise


@dataclass(frozen=True)
class Run:
    """What a call launched, and the bytes that none can do without: arguments and results once; backward arguments and the adjoints of
    both."""

    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]
    forward_ideal: int
    backward_ideal: int


def forward_and_backward(target: Target, call: Callable[[], Any], arguments: Sequence[Tensor], configurations: int = 1) -> Run:
    """A call's first result or results, and the gradients of the arguments that they depend on."""
    with dry(target, configurations) as launches:
        results = [x for x in tree_leaves(call()[0]) if isinstance(x, Tensor)]
        n = len(launches)
        seeds = [x.detach().clone() for x in results]
        del launches[n:]
        gradients = torch.autograd.grad(results, arguments, seeds, allow_unused=True)
    given, found = (sum(map(size, xs)) for xs in (arguments, results))
    return Run(tuple(launches[:n]), tuple(launches[n:]), given + found, given + found + sum(size(g) for g in gradients if g is not None))


@contextmanager
def _replaced(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)


class Driver:
    """What Triton asks of a GPU's driver. A loaded kernel is a table of the files that the compiler wrote."""

    def __init__(self, target: Target, launches: list[Launch], launcher: type | None = None) -> None:
        self.target, self.launches, self.device = target, launches, next(DEVICES)
        self.kernel, self.compiling = "", False
        self.launcher_cls = launcher or Launcher
        properties = {"max_shared_mem": target.shared, "max_num_regs": REGISTERS, "multiprocessor_count": target.processors}
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (None, {}, 0, 0, THREADS),  # of no module: Triton would have the last driver unload it
            get_device_properties=lambda device: {**properties, "warpSize": target.lanes}, unload_module=lambda module: None,
        )

    def compiles(self, *, fn: Any, **_: Any) -> None:
        self.kernel, self.compiling = fn.jit_function.fn.__name__, True

    def compiled(self, **_: Any) -> None:
        self.compiling = False

    @staticmethod
    def loaded(module: None, function: dict[str, str], name: str, files: Mapping[str, str], hash: str) -> None:
        function |= files

    def get_current_target(self) -> Any:
        return GPUTarget(self.target.backend, self.target.architecture, self.target.lanes)

    def get_current_device(self) -> int:
        return self.device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return self.target.capability

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Callable[..., Any]:
        return _needs


def _needs(call: Callable[[], None], quantiles: Iterable[float] | None = None, **_: object) -> float | list[float]:
    """In place of a time: a configuration that fits first, then the fewest bytes of stack, then the fewest registers."""
    driver = triton.runtime.driver.active  # a tuner keeps what it measures by from its first run on
    before = len(driver.launches)
    call()
    tried = [x.binary for x in driver.launches[before:] if x.binary is not None]
    del driver.launches[before:]
    fits = all(b.shared <= driver.target.shared for b in tried)
    found = sum(b.stack + b.registers / REGISTERS for b in tried) if fits else float("inf")
    return found if quantiles is None else [found for _ in quantiles]


def _spilled(kernel: Any) -> int:
    """What a driver says of a kernel that it has loaded: the stack of a thread, in registers."""
    return examined(binary_file(kernel.metadata_group.values()), kernel.metadata.shared).stack // 4


def _module(kernel: Any) -> Any:
    """What Triton looks at to see whether a kernel has been loaded: it would load it at every launch."""
    return kernel.__dict__["module"] or kernel._run


def _keep(kernel: Any, module: None) -> None:
    kernel.__dict__["module"] = module


class Launcher:
    """A kernel's launcher: the driver of the run notes the launch, though the kernel may be kept from an earlier one."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata

    def __call__(self, x: int, y: int, z: int, stream: int, function: dict[str, str], *more: Any) -> None:
        given = (getattr(x, "base", x) for x in tree_leaves(more[4:]))  # `base` of a descriptor; before them stands what a driver is told
        moved = distinct(x for x in given if isinstance(x, Tensor))
        m, stages = self.metadata, getattr(self.metadata, "num_stages", 0)
        binary = examined(binary_file(function.values()), m.shared)
        launch = Launch(m.name, moved, (x, y, z), m.num_warps, stages, binary)
        triton.runtime.driver.active.launches.append(launch)


class Idle:
    """A launcher that launches nothing."""

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass


def _device_as_told(target: Target) -> dict[str, Callable[..., Any]]:
    """What host code may ask torch.cuda."""
    about = SimpleNamespace(
        name=f"{target.name} (dry)", major=target.capability[0], minor=target.capability[1], multi_processor_count=target.processors,
        warp_size=target.lanes, shared_memory_per_block=target.shared, shared_memory_per_block_optin=target.shared,
        regs_per_multiprocessor=REGISTERS, total_memory=target.memory, gcnArchName=str(target.architecture),
    )  # fmt: skip
    told = {"get_device_properties": about, "get_device_name": about.name, "get_device_capability": target.capability}
    told |= {"current_device": 0, "device_count": 1, "current_stream": None, "synchronize": None}
    return {name: partial(_told, value) for name, value in told.items()}


def _told(value: Any, *_: Any, **__: Any) -> Any:
    return value
