from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime.backends import backend_statuses, open_backend
from mexma_runtime.backends.cpu import onnxruntime as onnxruntime_cpu
from mexma_runtime.backends.cpu.host import HostBackend
from mexma_runtime.backends.options import CpuOptions
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.backends.requirements import saturates, version_key
from mexma_runtime.batching import Grouping
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, PositionScheme, ProductMode, TextEntry
from mexma_runtime.errors import (
    BundleError,
    EngineUnavailableError,
    MexmaError,
    MissingDependencyError,
    UsageError,
)
from mexma_runtime.hardware import describe_processor, detect_hardware, sums_int8_exactly
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

MakeBundle = Callable[..., Path]
Reference = Callable[[Ragged], Vectors]
PAD = 1
SENTENCES = [[0, 5, 6, 2], [0, 2], [0, 7, PAD, 8, 9, 2], [0, 5, 6, 2]]


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def variant(bundle: Bundle, dialect: Dialect, precision: Precision, backend: str = "onnxruntime") -> EngineEntry:
    name = f"{dialect}.{precision}"
    engine = bundle.manifest.engines[0]
    return dataclasses.replace(engine, name=name, dialect=dialect, precision=precision, requires={backend: "1.16"})


def opened(bundle: Bundle, **options: int | bool) -> HostBackend:
    backend = open_backend(bundle, bundle.manifest.engines[0], CpuOptions(**options))  # type: ignore[arg-type]
    assert isinstance(backend, HostBackend)
    return backend


def text_entry(scheme: PositionScheme) -> TextEntry:
    return TextEntry(
        tokenizer="tokenizer.json",
        max_tokens=16,
        max_tokens_source="by hand",
        lower_case=False,
        padding_id=PAD,
        position_scheme=scheme,
    )


def position_ids_by_transformers(ids: list[list[int]]) -> list[list[int]]:
    """create_position_ids_from_input_ids, one id at a time."""
    rows = []
    for sentence in ids:
        row, seen = [], 0
        for token in sentence:
            seen += token != PAD
            row.append(PAD + seen if token != PAD else PAD)
        rows.append(row)
    return rows


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=6),
    st.sampled_from(PositionScheme),
)
def test_padded_inputs(sentences: list[list[int]], scheme: PositionScheme) -> None:
    longest = max(map(len, sentences))
    padded = [[*sentence, *[PAD] * (longest - len(sentence))] for sentence in sentences]
    mask = [[1] * len(sentence) + [0] * (longest - len(sentence)) for sentence in sentences]

    arrays = padded_inputs(Ragged.from_sequences(sentences), text_entry(scheme))

    assert arrays["input_ids"].tolist() == padded
    assert arrays["attention_mask"].tolist() == mask
    if scheme is PositionScheme.FROM_ZERO:
        assert arrays["position_ids"].tolist() == [[i * seen for i, seen in enumerate(row)] for row in mask]
    else:
        assert arrays["position_ids"].tolist() == position_ids_by_transformers(padded)
    for array in arrays.values():
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


def test_a_literal_padding_token_is_attended_to_and_keeps_its_position() -> None:
    arrays = padded_inputs(Ragged.from_sequences([[0, 5, PAD, 6, 2]]), text_entry(PositionScheme.AFTER_PADDING))

    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 1, 1]]
    assert arrays["position_ids"].tolist() == [[2, 3, 1, 4, 5]]


def test_sentences_of_one_length_are_not_copied() -> None:
    ragged = Ragged.from_sequences([[0, 5, 2], [0, 6, 2]])

    assert np.shares_memory(padded_inputs(ragged, text_entry(PositionScheme.FROM_ZERO))["input_ids"], ragged.ids)


def test_rows_are_written_into_the_callers_memory_and_nowhere_else(bundle: Bundle, reference: Reference) -> None:
    ragged = Ragged.from_sequences(SENTENCES)
    around = np.full((6, 8), 7, dtype=np.float32)

    opened(bundle, n_threads=1).run(ragged, around[1:5])

    np.testing.assert_allclose(around[1:5], reference(ragged), atol=1e-6)
    assert np.all(around[[0, 5]] == 7)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, 9), np.float32),
        np.zeros((3, 8), np.float32),
        np.zeros((4, 8), np.float64),
        np.zeros((8, 4), np.float32).T,
        np.broadcast_to(np.float32(0), (4, 8)),
    ],
)
def test_an_output_that_does_not_fit_is_refused(bundle: Bundle, out: Vectors) -> None:
    with pytest.raises(UsageError, match=r"out: expected float32 \(4, 8\), C-contiguous and writable, got"):
        opened(bundle, n_threads=1).run(Ragged.from_sequences(SENTENCES), out)


def test_info_says_what_runs(bundle: Bundle) -> None:
    import onnxruntime

    backend = opened(bundle, n_threads=2, spinning=False)

    info = backend.info
    assert (info.backend, info.version, info.device) == ("onnxruntime", onnxruntime.__version__, "cpu")
    assert info.providers == ("CPUExecutionProvider",)
    assert (info.n_threads, info.spinning, info.processor) == (2, False, describe_processor())
    assert info.policy.grouping is Grouping.EQUAL
    backend.close()
    backend.close()


def test_an_error_of_the_engine_is_raised_and_not_printed(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    backend = opened(bundle, n_threads=1)
    out = np.zeros((1, 8), np.float32)

    with pytest.raises(MexmaError, match=r"onnxruntime failed on a batch of 1x3 tokens: .*indices element out of data"):
        backend.run(Ragged.from_sequences([[0, 10_000, 2]]), out)
    backend.run(Ragged.from_sequences([[0, 5, 2]]), out)

    assert np.any(out)
    assert capfd.readouterr() == ("", "")


def test_threads_must_be_positive(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"n_threads: expected 1 to \d+, got 0"):
        opened(bundle, n_threads=0)


def test_a_library_that_is_too_old_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(EngineUnavailableError, match=r"needs onnxruntime 99\.1 or later, .* pip install --upgrade"):
        opened(Bundle.open(make_bundle(requires="99.1")))


@pytest.mark.parametrize(
    ("version", "key"), [("1.31.1", (1, 31, 1)), ("1.9.0+cpu", (1, 9, 0)), ("1.20rc1", (1, 20)), ("dev", ())]
)
def test_versions_compare_by_number(version: str, key: tuple[int, ...]) -> None:
    assert version_key(version) == key


def test_a_missing_library_names_the_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingDependencyError, match=r"onnxruntime is not installed.*mexma-runtime\[cpu\]"):
        opened(bundle)
    [status] = [status for status in backend_statuses() if (status.name, status.device) == ("onnxruntime", "cpu")]
    assert status.version is None
    assert "mexma-runtime[cpu]" in (status.problem or "")


def test_a_library_that_is_there_but_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import no_such_module\n")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)

    [status] = [status for status in backend_statuses() if (status.name, status.device) == ("onnxruntime", "cpu")]

    assert status.problem == "onnxruntime is installed but cannot be imported: No module named 'no_such_module'"


def test_statuses_tell_what_works_and_why_the_rest_does_not() -> None:
    statuses = {(status.name, status.device): status for status in backend_statuses()}

    assert statuses["onnxruntime", "cpu"].problem is None
    assert statuses["onnxruntime", "cpu"].version
    assert "pip install 'mexma-runtime[tensorrt]'" in str(statuses["tensorrt", "cuda"].problem)
    problem = statuses["onnxruntime", "cuda"].problem
    assert problem
    assert "CUDAExecutionProvider was asked for" in problem
    assert "CPUExecutionProvider" in problem
    assert "pip install 'mexma-runtime[gpu]'" in problem


def test_a_graph_of_other_inputs_is_refused(bundle: Bundle) -> None:
    engine = dataclasses.replace(bundle.manifest.engines[0], inputs=["input_ids", "attention_mask"])

    with pytest.raises(BundleError, match=r"expected inputs \['input_ids', 'attention_mask'\] .* the graph has"):
        open_backend(bundle, engine, CpuOptions(n_threads=1))


def test_a_graph_that_the_library_cannot_read_is_refused(make_bundle: MakeBundle) -> None:
    bundle = Bundle.open(make_bundle())
    path = bundle.path(bundle.manifest.engines[0].file)
    path.write_bytes(b"not a graph")

    with pytest.raises(EngineUnavailableError, match="cannot open this graph"):
        opened(bundle, n_threads=1)


def test_an_engine_for_another_backend_is_refused(bundle: Bundle) -> None:
    engine = variant(bundle, Dialect.PORTABLE, Precision.FP32, "openvino")

    with pytest.raises(EngineUnavailableError, match="is for openvino on cpu, not for onnxruntime on cpu"):
        open_backend(bundle, engine, CpuOptions())


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("instruction_sets", [("avx2",), ("avx2", "avx512_vnni"), ("asimd",)])
def test_int8_saturates_on_no_processor(
    make_int8_bundle: Callable[..., Bundle],
    int8_reference: Callable[[Ragged, int], Vectors],
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    instruction_sets: tuple[str, ...],
) -> None:
    own_instruction_sets = detect_hardware().instruction_sets
    hardware = dataclasses.replace(detect_hardware(), instruction_sets=instruction_sets)
    monkeypatch.setattr(onnxruntime_cpu, "detect_hardware", lambda: hardware)
    backend = opened(make_int8_bundle(ProductMode.STATIC, bits=bits), n_threads=1)
    ragged = Ragged.from_sequences([[0, 5, 6, 2], [0, 7, 8, 2]])
    out = np.zeros((2, 64), np.float32)

    backend.run(ragged, out)

    expected = "1" if (bits, instruction_sets) == (8, ("avx2",)) else "0"
    if bits == 7 or expected == "1" or sums_int8_exactly(own_instruction_sets):
        np.testing.assert_allclose(out, int8_reference(ragged, bits), rtol=1e-5)
    assert isinstance(backend, onnxruntime_cpu.OnnxRuntimeCpu)
    options = backend._session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == expected


def test_products_around_fp16_are_of_floats_on_a_cpu(make_int8_bundle: Callable[..., Bundle]) -> None:
    """onnxruntime 1.31 makes uint8 of their weights too, with a zero point that it then refuses."""
    (engine,) = make_int8_bundle(ProductMode.STATIC).manifest.engines
    around_fp16 = dataclasses.replace(engine, requires=engine.requires | {"tensorrt": "10.16"})
    assert (saturates(engine, ["avx2"]), saturates(around_fp16, ["avx2"])) == (True, False)
