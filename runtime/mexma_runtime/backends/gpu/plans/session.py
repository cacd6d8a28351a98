"""A plan opened as a device's session, by TensorRT or by TensorRT for RTX (rtx_session.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.tensorrt_library import Library, Messages, make_logger
from mexma_runtime.bundle.plans import Profile
from mexma_runtime.errors import EngineUnavailableError, MexmaError

if TYPE_CHECKING:
    import tensorrt as trt

SHAPED_BY = "input_ids"
"""The input whose shape says which profile a run needs."""


class PlanBinding:
    """Shapes and addresses for a run, and an execution context for each profile that it has needed.

    A context is a binding's own, so a captured graph's context never changes after the capture.
    """

    def __init__(self, *, is_fixed: bool) -> None:
        self.is_fixed = is_fixed
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.contexts: dict[int, trt.IExecutionContext] = {}

    def bind_input(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Read the input `name` from `pointer`."""
        self.shapes[name], self.addresses[name] = shape, pointer

    def bind_output(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Write the output `name` to `pointer`."""
        self.addresses[name] = pointer


class PlanSession:
    """A plan, opened. Weights are in the device's memory once, whatever profiles there are; so are activations."""

    captures = False

    def __init__(self, library: Library, path: Path, device: Device, stream: int, profiles: Sequence[Profile]) -> None:
        """`stream`: the handle of the stream that `device` queues on. `profiles`: as the plan's JSON has them."""
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = library.load()
        self.library = library.name
        self.providers: tuple[str, ...] = (library.title,)
        self._title, self._path, self._stream, self._profiles = library.title, path, stream, profiles
        self._trt = trt
        self._messages = Messages(library)
        self._logger = make_logger(library, self._messages)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise self._error("cannot open this plan")
        self._engine = engine
        if (n := engine.num_optimization_profiles) != len(profiles):
            raise EngineUnavailableError(f"{path}: its JSON lists {len(profiles)} profiles, the plan has {n}")
        sizes = [engine.get_device_memory_size_for_profile_v2(number) for number in range(n)]
        self._n_bytes = max(sizes)
        self._activations = device.allocate(self._n_bytes)

    @property
    def names(self) -> Mapping[str, list[str]]:
        """`inputs` and `outputs` of the plan."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = [engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        return {
            "inputs": [name for name, is_in in zip(names, is_input, strict=True) if is_in],
            "outputs": [name for name, is_in in zip(names, is_input, strict=True) if not is_in],
        }

    def holds(self, n_sentences: int, longest: int) -> bool:
        """Whether a profile does."""
        return any(profile.holds(n_sentences, longest) for profile in self._profiles)

    def binding(self, *, is_fixed: bool) -> PlanBinding:
        """A new binding: shapes and addresses for a run."""
        return PlanBinding(is_fixed=is_fixed)

    def keep_kernels(self) -> None:
        """Nothing: a plan of TensorRT's has all kernels in it."""

    def run(self, binding: PlanBinding) -> None:
        """Queue a run by the first profile that holds its shape, as one does."""
        n_sentences, longest = binding.shapes[SHAPED_BY]
        number = next(i for i, profile in enumerate(self._profiles) if profile.holds(n_sentences, longest))
        if number not in binding.contexts:
            binding.contexts[number] = self._new_context(number, is_fixed=binding.is_fixed)
        context = binding.contexts[number]
        done = [context.set_input_shape(name, shape) for name, shape in binding.shapes.items()]
        done += [context.set_tensor_address(name, address) for name, address in binding.addresses.items()]
        if not (all(done) and context.execute_async_v3(self._stream)):
            raise self._error("failed")

    def _create_context(self, *, is_fixed: bool) -> trt.IExecutionContext | None:
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _new_context(self, profile: int, *, is_fixed: bool) -> trt.IExecutionContext:
        context = self._create_context(is_fixed=is_fixed)
        if context is None:
            raise self._error("has no room for another execution context")
        if not context.set_optimization_profile_async(profile, self._stream):
            raise self._error(f"cannot use profile {profile}")
        # All contexts compute in the same memory: one stream, one after another.
        context.set_device_memory(self._activations.pointer, self._n_bytes)
        return context

    def _error(self, what: str) -> MexmaError:
        return EngineUnavailableError(f"{self._path}: {self._title} {what}: {self._messages.errors()}")
