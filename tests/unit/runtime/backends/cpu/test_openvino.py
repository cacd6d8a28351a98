from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mexma_runtime.backends import backend_statuses, open_backend
from mexma_runtime.backends.base import Backend
from mexma_runtime.backends.cpu.host import HostBackend
from mexma_runtime.backends.cpu.openvino import MIN_STREAMED_TOKENS
from mexma_runtime.backends.options import CpuOptions
from mexma_runtime.batching import BatchPolicy, Grouping
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.errors import BundleError, EngineUnavailableError, MexmaError, MissingDependencyError, UsageError
from mexma_runtime.hardware import VNNI, describe_processor, detect_hardware, most_threads
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

MakeBundle = Callable[..., Path]
MakeInt8Bundle = Callable[..., Bundle]
Reference = Callable[[Ragged], Vectors]
Int8Reference = Callable[..., Vectors]
RAGGED = Ragged.from_sequences([[0, 5, 6, 2], [0, 2], [0, 7, 1, 8, 9, 2], [0, 5, 6, 2]])
EQUAL = Ragged.from_sequences([[0, 5, 6, 2], [0, 7, 8, 2], [9, 9, 9, 9], [0, 5, 6, 2]])

needs_vnni = pytest.mark.skipif(
    VNNI.isdisjoint(detect_hardware().instruction_sets), reason="the processor has no VNNI, as these engines need"
)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def portable(bundle: Bundle) -> EngineEntry:
    engines = bundle.manifest.engines
    engine = next(e for e in engines if e.dialect is Dialect.PORTABLE and e.precision is Precision.FP32)
    return dataclasses.replace(engine, requires={"onnxruntime": "1.16", "openvino": "2026.1"})


def opened(bundle: Bundle, engine: EngineEntry | None = None, **options: int | bool | None) -> HostBackend:
    given = CpuOptions(**{"n_threads": 1, **options})  # type: ignore[arg-type]
    backend = open_backend(bundle, engine or portable(bundle), given, backend="openvino")
    assert isinstance(backend, HostBackend)
    return backend


def embedded(backend: Backend, ragged: Ragged, dim: int = 8) -> Vectors:
    out = np.full((len(ragged), dim), np.nan, dtype=np.float32)
    backend.start(ragged, out, normalize=False)()
    return out


def test_rows_are_written_into_the_callers_memory_and_nowhere_else(bundle: Bundle, reference: Reference) -> None:
    around = np.full((6, 8), 7, dtype=np.float32)

    opened(bundle).run(RAGGED, around[1:5])

    np.testing.assert_allclose(around[1:5], reference(RAGGED), atol=1e-6)
    assert np.all(around[[0, 5]] == 7)


def test_what_was_given_is_not_kept(bundle: Bundle) -> None:
    backend = opened(bundle)
    ids = np.array([0, 5, 2], dtype=np.int32)
    ids.flags.writeable = False

    first = embedded(backend, Ragged(ids=ids, offsets=np.array([0, 3])))
    kept = first.copy()
    embedded(backend, Ragged.from_sequences([[0, 9, 2]]))

    np.testing.assert_array_equal(first, kept)
    assert sys.getrefcount(ids) <= 2


def test_a_transformer_gives_the_same_vectors_as_in_onnxruntime(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine = portable(bundle)
    random = np.random.default_rng(3)
    options = CpuOptions(n_threads=1)
    peers = [open_backend(bundle, engine, options, backend=name) for name in ("onnxruntime", "openvino")]

    for n, length in ((1, 1), (1, 2), (3, 17), (8, 64), (1, bundle.manifest.text.max_tokens)):
        ragged = Ragged.from_sequences(random.integers(5, 100, (n, length)).tolist())
        theirs, ours = (embedded(peer, ragged, bundle.manifest.dim) for peer in peers)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_info_says_what_runs(bundle: Bundle) -> None:
    import openvino

    backend = opened(bundle, n_threads=1)
    info = backend.info

    assert (info.backend, info.device, info.providers) == ("openvino", "cpu", ("CPU",))
    assert openvino.__version__.startswith(info.version)
    assert (info.n_threads, info.spinning) == (1, False)
    assert info.processor == describe_processor(uses_onednn=True)
    assert info.policy.grouping is Grouping.EQUAL
    backend.close()
    backend.close()


def test_more_threads_than_there_are_processors_are_not_claimed(bundle: Bundle) -> None:
    assert opened(bundle, n_threads=most_threads()).info.n_threads <= detect_hardware().n_logical_cpus


def test_wishes_that_cannot_be_met_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"n_threads: expected 1 to \d+, got 0"):
        opened(bundle, n_threads=0)
    with pytest.raises(UsageError, match="spinning=True: OpenVINO's idle threads always sleep"):
        opened(bundle, spinning=True)


def test_engines_that_cannot_be_opened_are_refused(bundle: Bundle, make_bundle: MakeBundle) -> None:
    engine = portable(bundle)
    with pytest.raises(EngineUnavailableError, match=r"needs openvino 9999\.1 or later.*mexma-runtime\[openvino\]"):
        opened(bundle, dataclasses.replace(engine, requires={"openvino": "9999.1"}))
    with pytest.raises(EngineUnavailableError, match=r"is for onnxruntime on cpu.*, not for openvino on cpu"):
        opened(bundle, dataclasses.replace(engine, requires={"onnxruntime": "1"}))
    with pytest.raises(BundleError, match=r"expected inputs \['input_ids'\] .* the graph has"):
        opened(bundle, dataclasses.replace(engine, inputs=["input_ids"]))
    damaged = Bundle.open(make_bundle())
    damaged.path(engine.file).write_bytes(b"not a graph")
    with pytest.raises(EngineUnavailableError, match=r"openvino .* cannot open this graph"):
        opened(damaged, engine)


def test_a_missing_library_names_the_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(MissingDependencyError, match=r"mexma-runtime\[openvino\]', or ask for backend='onnxruntime'"):
        opened(bundle)


def test_a_library_that_is_there_but_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("import no_such_module\n")
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    [status] = [status for status in backend_statuses() if status.name == "openvino"]

    assert status.problem == "openvino is installed but cannot be imported: No module named 'no_such_module'"


def test_an_error_of_the_engine_is_raised_and_not_printed(
    make_bundle: MakeBundle, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(make_bundle())
    engine = portable(bundle)
    write_graph_for_one_token(bundle.path(engine.file))
    backend = opened(bundle, engine)

    with pytest.raises(
        MexmaError, match=r"openvino failed on a batch of 1x3 tokens: expected vectors \(1, 8\), got \(3, 8\)"
    ):
        embedded(backend, Ragged.from_sequences([[0, 5, 2]]))
    assert np.all(np.isfinite(embedded(backend, Ragged.from_sequences([[5], [6]]))))
    assert capfd.readouterr() == ("", "")


def write_graph_for_one_token(path: Path, width: int = 8) -> None:
    """One vector a token, so that only sentences of one token get as many as they should."""
    names = ("input_ids", "attention_mask", "position_ids")
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["input_ids", "attention_mask"], ["some"]),
            helper.make_node("Add", ["some", "position_ids"], ["sum"]),
            helper.make_node("Reshape", ["sum", "column"], ["rows"]),
            helper.make_node("Concat", ["rows"] * width, ["wide"], axis=1),
            helper.make_node("Cast", ["wide"], ["sentence_embedding"], to=TensorProto.FLOAT),
        ],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(np.array([-1, 1]), "column")],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.mark.parametrize("bits", [7, pytest.param(8, marks=needs_vnni)])
def test_static_int8_is_exact_and_the_same_among_any_batch_mates(
    make_int8_bundle: MakeInt8Bundle, int8_reference: Int8Reference, bits: int
) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=bits)
    backend = opened(bundle, bundle.manifest.engines[0])

    together = embedded(backend, EQUAL, dim=64)

    np.testing.assert_allclose(together, int8_reference(EQUAL, bits), rtol=1e-5, atol=1e-4)
    for row in range(len(EQUAL)):
        alone = embedded(backend, EQUAL.take(np.array([row])), dim=64)
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6)


def test_large_batches_are_parted_among_streams(
    make_int8_bundle: MakeInt8Bundle, int8_reference: Int8Reference
) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    backend = opened(bundle, bundle.manifest.engines[0], n_threads=2)
    if backend.info.n_threads < 2:
        pytest.skip("this process may use one processor only")
    random = np.random.default_rng(0)
    batches = [[random.integers(0, 10, n).tolist() for n in random.integers(1, 40, 40)] for _ in range(3)]
    long_one = [random.integers(0, 10, 300).tolist(), [1, 2], [3]]

    assert backend.info.policy == BatchPolicy(max_batch_tokens=1024, grouping=Grouping.MIXED)
    for sentences in (*batches, long_one, [*long_one, *batches[0]]):
        ragged = Ragged.from_sequences(sentences)
        assert ragged.ids.size >= MIN_STREAMED_TOKENS
        together = embedded(backend, ragged, dim=64)
        np.testing.assert_allclose(together, int8_reference(ragged, 7), rtol=1e-5, atol=1e-4)
        for row in (0, 2):
            np.testing.assert_array_equal(embedded(backend, ragged.take(np.array([row])), dim=64)[0], together[row])
    backend.close()


def test_streams_come_of_what_was_loaded_whatever_has_become_of_the_files(
    make_int8_bundle: MakeInt8Bundle, int8_reference: Int8Reference
) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    engine = bundle.manifest.engines[0]
    backend = opened(bundle, engine, n_threads=2)
    if backend.info.n_threads < 2:
        pytest.skip("this process may use one processor only")
    moved = bundle.folder.rename(bundle.folder.with_name("moved"))
    bundle.folder.mkdir()
    for file in moved.iterdir():
        (bundle.folder / file.name).write_bytes(b"another export")
    ragged = Ragged.from_sequences(np.random.default_rng(0).integers(0, 10, (40, 10)).tolist())

    np.testing.assert_allclose(embedded(backend, ragged, dim=64), int8_reference(ragged, 7), rtol=1e-5, atol=1e-4)


def test_an_error_in_a_stream_is_raised_and_the_streams_stay_usable(make_int8_bundle: MakeInt8Bundle) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    engine = bundle.manifest.engines[0]
    write_graph_for_one_token(bundle.path(engine.file), width=64)
    backend = opened(bundle, engine, n_threads=2)
    if backend.info.n_threads < 2:
        pytest.skip("this process may use one processor only")
    fine = [[5]] * 300

    with pytest.raises(MexmaError, match=r"openvino failed on a batch of \d+x\d tokens: .*expected vectors"):
        embedded(backend, Ragged.from_sequences([*fine, [5, 6, 7]]), dim=64)
    assert np.isfinite(embedded(backend, Ragged.from_sequences(fine), dim=64)).all()


@needs_vnni
def test_groups_of_channels_are_as_large_as_the_engine_says(
    make_int8_bundle: MakeInt8Bundle, int8_reference: Int8Reference
) -> None:
    exact = int8_reference(EQUAL, 8, ProductMode.GROUP)

    found = {}
    for size in (16, 32, 64):
        bundle = make_int8_bundle(ProductMode.GROUP, group_size=size)
        found[size] = embedded(opened(bundle, bundle.manifest.engines[0]), EQUAL, dim=64)

    errors = {size: np.linalg.norm(vectors - exact) / np.linalg.norm(exact) for size, vectors in found.items()}
    assert all(1e-4 < error < 1e-2 for error in errors.values()), errors
    assert len(set(errors.values())) == 3


@needs_vnni
@pytest.mark.parametrize("group_size", [None, 0, 24, 80])
def test_groups_that_openvino_would_compute_in_float_are_refused(
    make_int8_bundle: MakeInt8Bundle, group_size: int | None
) -> None:
    bundle = make_int8_bundle(ProductMode.GROUP, group_size=group_size)

    with pytest.raises(
        EngineUnavailableError, match="multiple of 16 channels, at most the 64 of the narrowest product"
    ):
        opened(bundle, bundle.manifest.engines[0])


@pytest.mark.parametrize(
    ("mode", "bits", "said"),
    [
        (ProductMode.STATIC, 8, "saturates sums of int8 products"),
        (ProductMode.GROUP, 7, "computes no int8 products with a scale a group"),
        (ProductMode.GROUP, 8, "computes no int8 products with a scale a group"),
    ],
)
def test_without_vnni_what_would_be_wrong_is_refused_with_ways_out(
    make_int8_bundle: MakeInt8Bundle, monkeypatch: pytest.MonkeyPatch, mode: ProductMode, bits: int, said: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bundle = make_int8_bundle(mode, bits=bits)

    with pytest.raises(EngineUnavailableError, match=rf"portable\.int8\.fast\.uint8: openvino {said}") as refused:
        opened(bundle, bundle.manifest.engines[0])
    for way_out in ("lacks avx512_vnni and avx_vnni", "backend='onnxruntime'", "precision='fp32'", "weight_bits 7"):
        assert way_out in str(refused.value)


def test_without_vnni_weights_of_7_bits_are_exact(
    make_int8_bundle: MakeInt8Bundle, int8_reference: Int8Reference
) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2"}

    out = in_a_process_of_its_own(
        """
        encoder = Encoder.load(folder, backend="openvino", n_threads=1)
        assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
        print(encoder.info.processor)
        for row in encoder.encode_ids(Ragged.from_sequences([[0, 5, 6, 2], [0, 7, 8, 2]])):
            print(*row)
        """,
        bundle.folder,
        limit,
    )

    processor, *rows = out.splitlines()
    expected = int8_reference(EQUAL.take(np.array([0, 1])), 7)
    np.testing.assert_allclose(np.array([row.split() for row in rows], dtype=np.float32), expected, rtol=1e-5)
    if not VNNI.isdisjoint(detect_hardware().instruction_sets):
        assert processor.endswith("(avx2; ONEDNN_MAX_CPU_ISA=AVX2)")


def test_memory_stays_flat_under_changing_shapes(tiny_bundle: Path) -> None:
    out = in_a_process_of_its_own(
        """
        import re, numpy as np
        from mexma_runtime.backends import open_backend
        from mexma_runtime.backends.options import CpuOptions
        from mexma_runtime.bundle.bundle import Bundle
        import dataclasses
        def resident_mb():
            return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
        bundle = Bundle.open(folder)
        engine = next(e for e in bundle.manifest.engines if e.name == "portable.fp32")
        engine = dataclasses.replace(engine, requires={"openvino": "2026.1"})
        backend = open_backend(bundle, engine, CpuOptions(n_threads=1), backend="openvino")
        random = np.random.default_rng(0)
        for i in range(1, 1201):
            length = int(random.integers(1, 120))
            ids = random.integers(5, 100, (int(random.integers(1, 512 // length + 1)), length))
            backend.run(Ragged.from_sequences(ids.tolist()), np.empty((len(ids), bundle.manifest.dim), np.float32))
            if i in (600, 1200):
                print(resident_mb())
        """,
        tiny_bundle,
        {},
    )

    before, after = map(float, out.split())
    assert after - before < 10


def in_a_process_of_its_own(code: str, folder: Path, environment: dict[str, str]) -> str:
    imports = "import os, sys\nfrom mexma_runtime import Encoder\nfrom mexma_runtime.types import Ragged\n"
    command = [sys.executable, "-c", f"{imports}folder = sys.argv[1]\n{textwrap.dedent(code)}", str(folder)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout
