from __future__ import annotations

import dataclasses
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mexma_runtime import (
    BundleError,
    EncodeCancelledError,
    Encoder,
    EncoderBusyError,
    EncodeTimeoutError,
    EngineUnavailableError,
    InputError,
    MexmaError,
    MissingDependencyError,
    Pooling,
    Precision,
    Ragged,
    TextTooLongError,
    TruncationWarning,
    UsageError,
)
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.manifest import MANIFEST_NAME, FileEntry
from mexma_runtime.types import Vectors

MakeBundle = Callable[..., Path]
Reference = Callable[[Ragged], Vectors]
LONG = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["the cat", "a dog, a cat", "", "  ", "zebra", "the", "the cat", "<pad> x", "\u0000", "\u05d0\u05d1"]

texts_of = st.lists(st.text("the catdogz \u00e9", max_size=12), max_size=12)
shared = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def many(n: int) -> list[str]:
    random = np.random.default_rng(n)
    return ["".join(random.choice(list("abcd "), size=int(random.integers(0, 10)))) for _ in range(n)]


def cosines(a: Vectors, b: Vectors) -> Vectors:
    products: Vectors = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return products


def mexma_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mexma")]


class After:
    """A cancel signal that comes after so many looks."""

    def __init__(self, n_looks: int) -> None:
        self.n_left = n_looks

    def is_set(self) -> bool:
        self.n_left -= 1
        return self.n_left < 0


def test_vectors_are_those_of_the_graph(encoder: Encoder, reference: Reference) -> None:
    vectors = encoder.encode(TEXTS)

    np.testing.assert_allclose(vectors, reference(encoder.tokenize(TEXTS).ragged), atol=1e-6)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 8), np.dtype(np.float32))


def test_shapes(encoder: Encoder) -> None:
    assert encoder.encode("the cat").shape == (8,)
    assert encoder.encode(["the cat"]).shape == (1, 8)
    assert encoder.encode([]).shape == (0, 8)
    assert encoder.encode([]).dtype == np.float32


@pytest.mark.parametrize("make", [tuple, iter, np.array, lambda texts: dict.fromkeys(texts).keys()])
def test_any_iterable_of_str_will_do(encoder: Encoder, make: Callable[[list[str]], Any]) -> None:
    texts = ["a", "the cat", "zebra"]

    np.testing.assert_array_equal(encoder.encode(make(texts)), encoder.encode(texts))


@shared
@given(texts_of, st.none() | st.integers(1, 4))
def test_a_vector_does_not_depend_on_its_batch(encoder: Encoder, texts: list[str], batch_size: int | None) -> None:
    together = encoder.encode(texts, batch_size=batch_size)

    alone = np.array([encoder.encode(text) for text in texts]).reshape(-1, 8)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.all(cosines(together, alone) >= 0.999999)


@shared
@given(texts_of.filter(bool), st.randoms())
def test_the_order_is_the_callers(encoder: Encoder, texts: list[str], random: Any) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)

    shuffled = encoder.encode([texts[i] for i in order])

    np.testing.assert_allclose(shuffled, encoder.encode(texts)[order], atol=1e-6)


def test_many_texts_take_the_same_way_as_few(encoder: Encoder) -> None:
    texts = many(10_000)

    vectors = encoder.encode(texts)

    for start in range(0, len(texts), 997):
        np.testing.assert_allclose(vectors[start : start + 50], encoder.encode(texts[start : start + 50]), atol=1e-6)
    assert not mexma_threads()


def test_a_text_without_a_token_is_named(make_bundle: MakeBundle) -> None:
    """A tokenizer that puts nothing around a text gives an empty one no token, whose mean is 0 / 0."""
    folder = make_bundle()
    manifest = Bundle.open(folder).manifest
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) | {"post_processor": None}
    path = folder / "bare.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    bare = FileEntry(name=path.name, sha256=sha256_of(path), size=path.stat().st_size)
    text = dataclasses.replace(manifest.text, tokenizer=bare.name)
    changed = dataclasses.replace(manifest, text=text, files=[*manifest.files, bare])
    (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    with Encoder.load(folder, n_threads=1) as encoder:
        assert np.isfinite(encoder.encode(["the cat"])).all()
        for ask in (encoder.encode, encoder.tokenize, lambda texts: list(encoder.encode_iter(texts, window=2))):
            with pytest.raises(InputError, match="input 2: expected 1 to 16 tokens, got 0"):
                ask(["the cat", "a", "", "b"])


@pytest.mark.parametrize("normalize", [True, False])
def test_the_checkpoints_own_length_unless_asked(make_bundle: MakeBundle, normalize: bool) -> None:
    encoder = Encoder.load(make_bundle(normalize=normalize), n_threads=1)
    plain = encoder.encode(TEXTS, as_pooled=True)
    unit = encoder.encode(TEXTS, normalize_embeddings=True)

    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(TEXTS), unit if normalize else plain)
    np.testing.assert_array_equal(encoder.encode_ids(encoder.tokenize(TEXTS).ragged), unit if normalize else plain)
    assert encoder.info.normalize is normalize


def test_a_torch_tensor_over_the_same_memory(encoder: Encoder) -> None:
    torch = pytest.importorskip("torch")
    out = np.zeros((2, 8), np.float32)

    tensor = encoder.encode(["a", "b"], convert_to_tensor=True, out=out)
    out[:] = 3

    assert isinstance(tensor, torch.Tensor)
    assert torch.all(tensor == 3)
    assert encoder.encode("a", convert_to_tensor=True).shape == (8,)
    assert encoder.encode([], convert_to_tensor=True).shape == (0, 8)
    rows = encoder.encode(["a", "b"], convert_to_numpy=False)
    assert [tuple(row.shape) for row in rows] == [(8,), (8,)]
    assert all(isinstance(row, torch.Tensor) for row in rows)


def test_a_missing_torch_is_named(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)

    with pytest.raises(MissingDependencyError, match="torch is not installed, and convert_to_tensor needs it"):
        encoder.encode(["a"], convert_to_tensor=True)


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ({}, ""),
        ({"prompt_name": "query"}, "the "),
        ({"prompt_name": "passage"}, ""),
        ({"prompt": "a "}, "a "),
        ({"prompt": "a ", "prompt_name": "query"}, "a "),
        ({"prompt": ""}, ""),
        ({"prompt_name": "document"}, ""),
    ],
)
def test_prompts(encoder: Encoder, arguments: dict[str, Any], prompt: str) -> None:
    expected = encoder.encode([prompt + "cat", prompt + "dog"])

    np.testing.assert_array_equal(encoder.encode(["cat", "dog"], **arguments), expected)
    np.testing.assert_allclose(np.array(list(encoder.encode_iter(["cat", "dog"], **arguments))), expected, atol=1e-6)


def test_queries_and_documents_are_encoded_with_their_prompts(make_bundle: MakeBundle) -> None:
    texts = ["cat", "dog"]
    with Encoder.load(make_bundle(default_prompt_name="query"), n_threads=1) as encoder:
        query, plain = (encoder.encode(texts, prompt=prompt) for prompt in ("the ", ""))
        np.testing.assert_array_equal(encoder.encode_query(texts), query)
        np.testing.assert_array_equal(encoder.encode_query(texts, prompt=""), plain)
        np.testing.assert_array_equal(encoder.encode_document(texts), plain)
        np.testing.assert_array_equal(encoder.encode_document(texts, prompt_name="query"), query)
        assert encoder.encode_query("cat", normalize_embeddings=True).shape == (encoder.info.dim,)
    with Encoder.load(make_bundle(prompts={}, default_prompt_name="document"), n_threads=1) as bare:
        for vectors in (bare.encode(texts), bare.encode_query(texts), bare.encode_document(texts)):
            np.testing.assert_array_equal(vectors, plain)


def test_a_default_prompt_can_be_switched_off(make_bundle: MakeBundle) -> None:
    encoder = Encoder.load(make_bundle(default_prompt_name="query"), n_threads=1)

    np.testing.assert_array_equal(encoder.encode("cat"), encoder.encode("the cat", prompt=""))
    assert np.any(encoder.encode("cat") != encoder.encode("cat", prompt=""))


def test_an_unknown_prompt_is_answered_with_the_known_ones(encoder: Encoder) -> None:
    with pytest.raises(
        UsageError, match=r"prompt_name: expected one of \['document', 'passage', 'query'\], got 'nobody'"
    ):
        encoder.encode("a", prompt_name="nobody")


def test_truncation_warns_once_at_the_callers_line_and_counts(encoder: Encoder) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder.encode(["a", LONG, "b", LONG + "x"])
        list(encoder.encode_iter([LONG, "a", LONG], window=1))

    assert [(w.category, w.filename) for w in caught] == [(TruncationWarning, __file__)] * 2
    assert [w.message.n_truncated for w in caught] == [2, 2]  # type: ignore[union-attr]
    assert str(caught[0].message).startswith("2 of 4 texts have more than 16 tokens")
    assert encoder.tokenize(["a", LONG]).truncated.tolist() == [False, True]


def test_truncation_can_be_refused(encoder: Encoder) -> None:
    with pytest.raises(TextTooLongError) as caught:
        encoder.encode([*["a"] * 5000, LONG], truncate=False)

    assert caught.value.index == 5000
    assert not mexma_threads()


def test_what_was_truncated_is_what_was_embedded(encoder: Encoder) -> None:
    tokens = encoder.tokenize([LONG, "a"])

    with pytest.warns(TruncationWarning):
        vectors = encoder.encode([LONG, "a"])

    np.testing.assert_array_equal(encoder.encode_ids(tokens.ragged), vectors)
    assert tokens.ragged.lengths.max() == 16


def test_a_text_that_fails_ahead_ends_the_batches_before_it(encoder: Encoder) -> None:
    class Slow(After):
        def is_set(self) -> bool:
            time.sleep(0.001)
            return super().is_set()

    looks = Slow(10**6)
    with pytest.raises(InputError, match="input 5000: "):
        encoder.encode([*["a"] * 5000, "\ud800"], batch_size=1, cancel=looks)

    assert 10**6 - looks.n_left < 4096


@pytest.mark.parametrize("bad", [None, 3, b"bytes", "\ud800"])
@pytest.mark.parametrize("n_before", [0, 7, 9000])
def test_what_cannot_be_embedded_is_named_by_its_index(encoder: Encoder, bad: Any, n_before: int) -> None:
    texts: list[Any] = [*["a"] * n_before, bad, "b"]

    for attempt in (
        lambda: encoder.encode(texts),
        lambda: encoder.encode(texts, prompt="a "),
        lambda: list(encoder.encode_iter(texts)),
    ):
        with pytest.raises(InputError, match=f"input {n_before}: ") as caught:
            attempt()
        assert caught.value.index == n_before
    assert not mexma_threads()
    assert encoder.encode("a").shape == (8,)


@pytest.mark.parametrize("sentences", [None, 3, b"bytes", {"a": "b"}])
def test_what_is_no_sequence_of_texts_is_refused(encoder: Encoder, sentences: Any) -> None:
    with pytest.raises(InputError, match=f"got {type(sentences).__name__}"):
        encoder.encode(sentences)


@pytest.mark.parametrize("name", ["tokenize", "encode_iter"])
def test_one_str_is_not_a_sequence_of_texts(encoder: Encoder, name: str) -> None:
    with pytest.raises(InputError, match="got str"):
        getattr(encoder, name)("the cat")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_a_sentence(encoder: Encoder, batch_size: int) -> None:
    with pytest.raises(UsageError, match="batch_size: expected 1 or more"):
        encoder.encode(["a"], batch_size=batch_size)


def test_out_is_filled_and_returned(encoder: Encoder, tmp_path: Path) -> None:
    expected = encoder.encode(TEXTS)
    out = np.empty_like(expected)
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=expected.shape)

    assert encoder.encode(TEXTS, out=out) is out
    assert encoder.encode(TEXTS, out=mapped) is mapped

    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(mapped, expected)


@pytest.mark.parametrize("shape", [(2, 8), (4, 8), (3, 7), (24,)])
def test_an_out_of_another_shape_is_refused(encoder: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"out: expected float32 \(3, 8\)"):
        encoder.encode(["a", "b", "c"], out=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("rows", "index", "said"),
    [
        ([[0, 2], []], 1, "expected 1 to 16 tokens, got 0"),
        ([[0] * 17], 0, "expected 1 to 16 tokens, got 17"),
        ([[0, 2], [0, 5, 2], [0, 34, 2]], 2, "expected token ids from 0 to 33, got 34"),
        ([[0, -1]], 0, "expected token ids from 0 to 33, got -1"),
    ],
)
def test_ids_are_checked(encoder: Encoder, rows: list[list[int]], index: int, said: str) -> None:
    with pytest.raises(InputError, match=f"input {index}: {said}") as caught:
        encoder.encode_ids(Ragged.from_sequences(rows))

    assert caught.value.index == index


def test_lists_of_ids_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"expected a Ragged, got list: Ragged\.from_sequences"):
        encoder.encode_ids([[0, 5, 2]])  # type: ignore[arg-type]


@shared
@given(st.lists(st.lists(st.integers(0, 33), min_size=1, max_size=16), max_size=10))
def test_ids_are_embedded(encoder: Encoder, reference: Reference, rows: list[list[int]]) -> None:
    ragged = Ragged.from_sequences(rows)

    np.testing.assert_allclose(encoder.encode_ids(ragged), reference(ragged), atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_vectors_of_a_generator_come_in_order(encoder: Encoder, window: int) -> None:
    texts = many(50)

    vectors = list(encoder.encode_iter((text for text in texts), window=window))

    np.testing.assert_allclose(vectors, encoder.encode(texts), atol=1e-6)


def test_a_generator_is_read_in_the_callers_thread_and_no_further_than_needed(encoder: Encoder) -> None:
    read: list[str] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(threading.current_thread().name)
            yield "a cat"

    vectors = encoder.encode_iter(endless(), window=10)
    for _ in range(25):
        next(vectors)
    assert len(read) <= 40
    assert set(read) == {threading.current_thread().name}
    vectors.close()
    assert not mexma_threads()


def test_vectors_of_a_generator_stand_alone(encoder: Encoder) -> None:
    vectors = list(encoder.encode_iter(["a", "b"]))

    assert all(vector.base is None for vector in vectors)


def test_nothing_gives_no_vectors(encoder: Encoder) -> None:
    assert list(encoder.encode_iter([])) == []
    with pytest.raises(UsageError, match="window: expected 1 or more, got 0"):
        encoder.encode_iter([], window=0)


def test_an_error_of_the_callers_generator_is_the_callers(encoder: Encoder) -> None:
    def broken() -> Iterator[str]:
        yield from ["a"] * 5
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(encoder.encode_iter(broken(), window=2))
    assert not mexma_threads()


def test_a_timeout_ends_the_call_and_not_the_encoder(encoder: Encoder) -> None:
    for texts in (["a"], many(9000)):
        with pytest.raises(EncodeTimeoutError, match=r"within 1e-09 s"):
            encoder.encode(texts, timeout=1e-9)
    assert encoder.encode("a", timeout=60).shape == (8,)
    assert not mexma_threads()


@pytest.mark.parametrize("n_looks", [0, 1, 5, 40])
def test_a_call_is_cancelled_between_batches(encoder: Encoder, n_looks: int) -> None:
    done: list[int] = []
    with pytest.raises(EncodeCancelledError):
        encoder.encode(many(9000), batch_size=1, cancel=After(n_looks))
    with pytest.raises(EncodeCancelledError):
        done.extend(len(vector) for vector in encoder.encode_iter(many(9000), batch_size=1, cancel=After(n_looks)))
    assert len(done) < 9000
    assert encoder.encode(["a"], cancel=threading.Event()).shape == (1, 8)
    assert not mexma_threads()


def test_a_full_queue_refuses_the_next_call(bundle_folder: Path) -> None:
    encoder = Encoder.load(bundle_folder, n_threads=1, max_waiting=0)
    vectors = encoder.encode_iter(["a", "b"])
    next(vectors)

    with pytest.raises(EncoderBusyError, match="max_waiting=0"):
        encoder.encode("a")
    vectors.close()

    assert encoder.encode("a").shape == (8,)


def test_eight_threads_get_what_one_gets(bundle_folder: Path) -> None:
    encoder = Encoder.load(bundle_folder)
    inputs = [many(100 + 37 * i) for i in range(8)]
    expected = [encoder.encode(texts) for texts in inputs]
    failures: list[object] = []

    def work(i: int) -> None:
        try:
            for attempt in range(5):
                if attempt % 2:
                    vectors = np.array(list(encoder.encode_iter(inputs[i], window=50)))
                else:
                    vectors = encoder.encode(inputs[i])
                np.testing.assert_allclose(vectors, expected[i], atol=1e-6)
        except (AssertionError, MexmaError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert not mexma_threads()


def test_info_says_what_was_chosen(bundle_folder: Path) -> None:
    import onnxruntime

    info = Encoder.load(bundle_folder, precision="fp32", dialect="portable", n_threads=1, spinning=False).info

    assert (info.engine, info.dialect, info.precision) == ("portable.fp32", "portable", Precision.FP32)
    assert (info.backend, info.version, info.device) == ("onnxruntime", onnxruntime.__version__, "cpu")
    assert (info.providers, info.n_threads, info.spinning) == (("CPUExecutionProvider",), 1, False)
    assert (info.dim, info.max_tokens, info.pooling, info.pooling_source) == (8, 16, Pooling.MEAN, "by hand")
    assert (info.model_id, info.model_revision, info.normalize) == ("by-hand/tiny", None, False)
    assert (info.space, info.bundle) == ("0123456789abcdef", str(bundle_folder))


def test_loading_takes_nothing_else_instead(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="CUDAExecutionProvider was asked for, and the installed onnx"):
        Encoder.load(bundle_folder, device="cuda")
    with pytest.raises(UsageError, match="memory_limit=1 is for a GPU, and device='cpu' was asked for"):
        Encoder.load(bundle_folder, memory_limit=1)
    with pytest.raises(UsageError, match="attention=flash is for a GPU, and device='cpu' was asked for"):
        Encoder.load(bundle_folder, attention="flash")
    with pytest.raises(UsageError, match="attention: expected one of efficient, flash, auto, got 'math'"):
        Encoder.load(bundle_folder, attention="math")
    with pytest.raises(UsageError, match="graphs: expected one of at-load, first-use, never, got 'always'"):
        Encoder.load(bundle_folder, graphs="always")
    with pytest.raises(EngineUnavailableError, match="no int8 engine"):
        Encoder.load(bundle_folder, precision="int8")
    with pytest.raises(BundleError, match="does not exist"):
        Encoder.load(tmp_path / "nowhere")


def test_warmup_runs_every_length_and_a_full_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[tuple[int, int]]()
    start = encoder._backend.start

    def recorded(batch: Ragged, *others: Any, **options: Any) -> Any:
        ran.append((len(batch), int(batch.lengths[0])))
        return start(batch, *others, **options)

    monkeypatch.setattr(encoder._backend, "start", recorded)

    encoder.warmup()
    assert ran == [(1, 8), (1, 16), (1, 16), (encoder.info.max_batch_tokens // 16, 16)]
    del ran[:]
    encoder.warmup(lengths=[1, 16, 500], batch_size=3, full_batch=False)
    assert ran == [(3, 1), (3, 16), (3, 16)]
    with pytest.raises(InputError, match="expected 1 to 16 tokens, got 0"):
        encoder.warmup(lengths=[0])


def test_similarity_is_the_cosine(encoder: Encoder) -> None:
    a, b = encoder.encode(["a", "the cat"]), encoder.encode(["a", "dog", "zebra"])

    similarities = encoder.similarity(a, b)

    assert (similarities.shape, similarities.dtype) == ((2, 3), np.dtype(np.float32))
    assert similarities[0, 0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(similarities[:, 1], cosines(a, np.tile(b[1], (2, 1))), atol=1e-6)
    assert encoder.similarity(a[0], b).shape == (1, 3)
    assert encoder.similarity(np.zeros(8), b).tolist() == [[0, 0, 0]]
    with pytest.raises(InputError, match="similarity: expected"):
        encoder.similarity(a, b[:, :5])


def test_progress_is_drawn_only_when_asked_and_on_a_terminal(
    encoder: Encoder, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.encode(many(200))
    encoder.encode(many(200), show_progress_bar=True)
    assert capfd.readouterr() == ("", "")

    monkeypatch.setenv("FORCE_COLOR", "1")
    encoder.encode(many(200), show_progress_bar=True)
    out, err = capfd.readouterr()
    assert not out
    assert "100%" in err


def test_times_say_where_the_time_went(encoder: Encoder) -> None:
    before = encoder.times
    start_s = time.perf_counter()
    tokens = encoder.tokenize(["abc"] * 20)
    tokenized, whole_s = encoder.times, time.perf_counter() - start_s

    assert 0 < tokenized.tokenize_s - before.tokenize_s <= whole_s
    assert (tokenized.copy_s, tokenized.compute_s) == (before.copy_s, before.compute_s)

    start_s = time.perf_counter()
    encoder.encode_ids(tokens.ragged)
    embedded, whole_s = encoder.times, time.perf_counter() - start_s

    assert embedded.tokenize_s == tokenized.tokenize_s
    assert embedded.copy_s > tokenized.copy_s
    assert embedded.compute_s > tokenized.compute_s
    assert embedded.copy_s + embedded.compute_s - tokenized.copy_s - tokenized.compute_s <= whole_s
