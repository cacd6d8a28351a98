"""The encoder: a bundle in, vectors out."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from numbers import Integral
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack, cast, overload

from numpy.typing import ArrayLike

from mexma_runtime.backends import choose, open_backends, require_memory_left, resolve_backend_options
from mexma_runtime.backends.base import Backend
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.call.call import Call
from mexma_runtime.call.execution import Execution, check_ids
from mexma_runtime.call.options import (
    EncodeOptions,
    VectorOptions,
    listed,
    refuse_what_torch_does,
    require_several,
    resolve_options,
    resolve_timeout,
    resolve_vector_options,
)
from mexma_runtime.call.request import CancelSignal
from mexma_runtime.call.scheduler import Scheduler
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import TruncationWarning, UsageError
from mexma_runtime.info import EncoderInfo, Times, describe
from mexma_runtime.load_options import LoadOptions, check_load_options
from mexma_runtime.process import NATIVE, keep_in_forks, require_process
from mexma_runtime.similarity import pairwise_similarity, similarity
from mexma_runtime.terminal import Progress, progress_bars
from mexma_runtime.text.tokenizer import MAX_WHOLE_CHARS, TextTokenizer, Tokenized, TokenizerSpec
from mexma_runtime.types import Ragged, Similarity, Vectors
from mexma_runtime.vectors import rows_to_fill, to_tensor

ITER_WINDOW_TEXTS = 1024
"""Texts that `encode_iter` batches together: more would fill batches better, and give the first vector later."""
NOT_WHOLE = "`out` and output='device' take whole float32 vectors: no truncate_dim, no precision"
MAX_WAITING = 64
"""Calls that wait for the engine, where nothing else is asked for."""
WARMUP_LENGTH = 32
"""Tokens of each sentence of a full batch."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _takes_sentences(method: Method) -> Method:
    """Let `method` take `sentences`, the name that sentence-transformers had for `inputs` before its version 6."""

    @functools.wraps(method)
    def with_old_name(self: Encoder, *arguments: Any, **options: Any) -> Any:
        if "sentences" in options and "inputs" not in options:
            options = {"inputs": options.pop("sentences"), **options}
        return method(self, *arguments, **options)

    return cast("Method", with_old_name)


class Encoder:
    """Embeds text with one engine of a bundle. Made by `Encoder.load`; safe to call from many threads.

    Calls that wait for the engine are computed together, with equal shares of it. An encoder does not survive fork;
    pickling one opens its bundle again where it is unpickled. Nothing here prints.
    """

    def __init__(self, bundle: Bundle, engine: EngineEntry, backend: Backend, options: LoadOptions) -> None:
        """`options`: those it was loaded with; another process needs them to load this encoder again."""
        self._manifest, self._engine, self._backend, self._options = bundle.manifest, engine, backend, options
        text = bundle.manifest.text
        spec = TokenizerSpec(
            max_tokens=text.max_tokens,
            lower_case=text.lower_case,
            max_whole_chars=options.get("max_whole_chars", MAX_WHOLE_CHARS),
        )
        self._tokenizer = TextTokenizer(bundle.path(text.tokenizer), spec)
        self._execution = Execution(bundle.manifest, self._tokenizer, backend)
        max_waiting = options.get("max_waiting", MAX_WAITING)
        self._scheduler = Scheduler(backend, dim=bundle.manifest.dim, max_waiting=max_waiting)
        self._info = describe(bundle, engine, backend.info)
        keep_in_forks(backend)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = False,
        **options: Unpack[LoadOptions],
    ) -> Encoder:
        """Open the bundle in folder `path`; `encoder.info` says what was chosen.

        precision: `fp32`, `fp16`, `int8` or `fp8`; None: int8 for a recipe, else the only one there is, or fp32; on a
            GPU fp16.
        recipe: of int8 and fp8, `fast`, `precise`, `tensorrt` or one's own; None: `precise` on OpenVINO, `fast` on
            onnxruntime, where the bundle has it.
        dialect: `fused`, `portable` or `packed`; None: the one that the backend runs best.
        engine: one engine by its name, instead of the three above.
        device, backend: what to run on (`cpu` if not said) and which library to insist on; nothing else is ever used in
            their place. No backend: OpenVINO for int8, where it is installed and the processor has VNNI; else
            onnxruntime first.
            Several GPUs, `["cuda:0", "cuda:1"]`, share the batches of each call.
        n_threads: threads that compute one batch; None: OMP_NUM_THREADS where it is set, else the physical cores that
            this process may use.
        spinning: whether idle threads wait busily; None: unless a CPU quota holds. With several encoders in one
            process give each its share of the cores, and spinning=False. OpenVINO's threads never do. On a GPU: whether
            the thread that waits for it does; None: yes.
        graphs: of a GPU, when graphs for small batches are captured: `at-load` (None), `first-use` or `never`.
        attention: of a GPU and packed engines, the kernel: `efficient` (None), faster for sentences of mostly up to 64
            tokens, `flash`, faster for longer texts, or `auto`, either by the batch, which takes more memory; where
            there is none left it is efficient alone, and `info.attention` says so.
        memory_limit: of a GPU, bytes that onnxruntime may take for weights and activations, `auto`'s of both kernels
            together; None: all there are.
        verify: check the weights' hash too (everything else is always checked).
        max_waiting: calls that may wait for the running one, 64 if not said; the next gets EncoderBusyError.
        max_whole_chars: most characters of a text that are tokenized at once where no place to cut them is known, some
            300 bytes of memory each, 2^20 if not said; more get InputError. Text with white space is cut long before.

        Raises BundleError, DeviceMemoryError, EngineUnavailableError, MissingDependencyError or UsageError.
        """
        return cls.from_bundle(Bundle.open(path, verify=verify), **options)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Unpack[LoadOptions]) -> Encoder:
        """The same with a bundle that is open already."""
        check_load_options(options)
        require_memory_left()
        device = options.get("device", "cpu")
        if not all(isinstance(one, str) for one in device):
            raise UsageError(f"device: expected a str or several, got {device!r}")
        spec, entry = choose(
            bundle,
            device=device,
            backend=options.get("backend"),
            engine=options.get("engine"),
            precision=options.get("precision"),
            dialect=options.get("dialect"),
            recipe=options.get("recipe"),
        )
        how = resolve_backend_options(
            spec.device,
            device,
            n_threads=options.get("n_threads"),
            spinning=options.get("spinning"),
            graphs=options.get("graphs"),
            attention=options.get("attention"),
            memory_limit=options.get("memory_limit"),
        )
        with NATIVE:
            opened = open_backends(bundle, entry, how, device, backend=spec.name)
            require_memory_left()
            return cls(bundle, entry, opened, options)

    @property
    def info(self) -> EncoderInfo:
        """What was chosen: engine, backend, threads, dim, max_tokens and more."""
        return self._info

    @property
    def times(self) -> Times:
        """Where the time went since the encoder was loaded, all calls together."""
        return Times(
            tokenize_s=self._execution.tokenize_s, copy_s=self._backend.copy_s, compute_s=self._backend.compute_s
        )

    @property
    def prompts(self) -> dict[str, str]:
        """What `prompt_name` may be, and what each puts before a text."""
        return self._manifest.text.known_prompts

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt that stands before every text unless a call asks otherwise; None: nothing does."""
        return self._manifest.text.default_prompt_name

    @overload
    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        output_value: str = ...,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        device: str | None = ...,
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        pool: None = ...,
        chunk_size: None = ...,
        *,
        as_pooled: bool = ...,
        truncate: bool | Literal["quietly"] = ...,
        timeout: float | None = ...,
        cancel: CancelSignal | None = ...,
        out: Vectors | None = ...,
        output: None = ...,
    ) -> Vectors: ...

    @overload
    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        output_value: str = ...,
        precision: str | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        device: str | None = ...,
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        pool: None = ...,
        chunk_size: None = ...,
        *,
        as_pooled: bool = ...,
        truncate: bool | Literal["quietly"] = ...,
        timeout: float | None = ...,
        cancel: CancelSignal | None = ...,
        out: Vectors | None = ...,
        output: str | None = ...,
    ) -> Any: ...

    @_takes_sentences
    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        as_pooled: bool = False,
        truncate: bool | Literal["quietly"] = True,
        timeout: float | None = None,
        cancel: CancelSignal | None = None,
        out: Vectors | None = None,
        output: str | None = None,
    ) -> Any:
        """Embed texts: float32 `(n, dim)` in input order, owned by the caller; one str gives `(dim,)`.

        The arguments up to `chunk_size` are sentence-transformers', with its meaning; docs/integrations.md has a table.
        prompt_name, prompt: what to put before each text, by its name in the checkpoint or as it is; every model knows
            the names `query` and `document`, which are empty unless the checkpoint says more.
        batch_size: most sentences in a batch; None: as many as the backend does best.
        show_progress_bar: draw one on stderr, where that is a terminal.
        precision: the form of the vectors, `float32`, `int8`, `uint8`, `binary` or `ubinary`; see VectorPrecision.
        convert_to_tensor: a torch.Tensor over the same memory; convert_to_numpy=False: a list of tensors.
        normalize_embeddings: give vectors length 1, also where the checkpoint's own way is another.
        truncate_dim: keep so many numbers of each vector, which get length 1 where `normalize_embeddings` says so.
        output_value, device, pool, chunk_size: refused unless they ask for what an encoder does anyway.
        as_pooled: leave vectors as pooled, also where the checkpoint's own way is to give them length 1.
        truncate: cut texts of more than `max_seq_length` tokens, with one TruncationWarning, or `quietly`; False:
            TextTooLongError.
        timeout: seconds for the whole call, looked at between batches: EncodeTimeoutError, also where it will be late.
        cancel: a threading.Event or the like, looked at between batches: EncodeCancelledError.
        out: where to write: float32 `(n, dim)`, C-contiguous.
        output: `device` leaves the vectors in a GPU's memory: DeviceVectors, which torch and cupy take by DLPack.

        Raises InputError with the index of a text that cannot be embedded, before any is; EncoderBusyError,
        EngineFailedError and EncoderClosedError.
        """
        options, form = self._resolve(
            prompt_name, prompt, batch_size, precision, normalize_embeddings, truncate_dim, as_pooled, truncate
        )
        refuse_what_torch_does(
            self._info.device, output_value=output_value, device=device, pool=pool, chunk_size=chunk_size
        )
        if output not in (None, "device"):
            raise UsageError(f"output: expected None or 'device', got {output!r}")
        if output and (out is not None or convert_to_tensor or not convert_to_numpy):
            raise UsageError("output='device' gives DeviceVectors alone: leave out `out` and convert_to_...")
        if not form.is_whole and (output or out is not None):
            raise UsageError(NOT_WHOLE)
        texts = [inputs] if isinstance(inputs, str) else listed(inputs)
        on_device = None
        if output:
            shape = (self._info.dim,) if isinstance(inputs, str) else (len(texts), self._info.dim)
            with NATIVE:
                on_device = self._backend.device_vectors(shape)
        vectors = rows_to_fill(out, len(texts), self._info.dim) if on_device is None else on_device.rows
        progress = progress_bars() if show_progress_bar else nullcontext()
        with progress as report, self._call(timeout, cancel) as call:
            on_rows = report and functools.partial(_report_rows, report, len(texts))
            n_truncated = self._execution.embed_texts(texts, vectors, options, call, on_rows)
        if truncate != "quietly":
            self._warn_of_truncation(n_truncated, len(texts))
        if isinstance(vectors, DeviceRows):
            return on_device
        result = form.apply(vectors[0] if isinstance(inputs, str) else vectors)
        if convert_to_tensor:
            return to_tensor(result)
        if not convert_to_numpy:
            return to_tensor(result) if isinstance(inputs, str) else list(to_tensor(result))
        return result

    async def aencode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        *,
        precision: str | None = "float32",
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        as_pooled: bool = False,
        truncate: bool | Literal["quietly"] = True,
        timeout: float | None = None,
        out: Vectors | None = None,
    ) -> Any:
        """`encode` for asyncio: no thread waits for the engine, and cancelling the task cancels the call.

        A few short texts are tokenized in the event loop's thread, which takes a fraction of a millisecond; more of
        them beside it.
        """
        from mexma_runtime.call.in_event_loop import embed_texts  # brings asyncio

        options, form = self._resolve(
            prompt_name, prompt, batch_size, precision, normalize_embeddings, truncate_dim, as_pooled, truncate
        )
        if not form.is_whole and out is not None:
            raise UsageError(NOT_WHOLE)
        texts = [inputs] if isinstance(inputs, str) else listed(inputs)
        vectors = rows_to_fill(out, len(texts), self._info.dim)
        with self._call(timeout, None) as call:
            n_truncated = await embed_texts(self._execution, texts, vectors, options, call)
        if truncate != "quietly":
            self._warn_of_truncation(n_truncated, len(texts))
        return form.apply(vectors[0] if isinstance(inputs, str) else vectors)

    @_takes_sentences
    def encode_query(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """`encode`, whose arguments it takes, with the checkpoint's prompt for queries unless another is named."""
        return self.encode(inputs, "query" if prompt_name is None else prompt_name, prompt, *arguments, **options)

    @_takes_sentences
    def encode_document(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """`encode` with the checkpoint's prompt called `document`, which is empty where it has none of that name.

        So it is in sentence-transformers, too: multilingual-e5 calls its own `passage`, which has to be asked for.
        """
        return self.encode(inputs, "document" if prompt_name is None else prompt_name, prompt, *arguments, **options)

    @_takes_sentences
    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        window: int = ITER_WINDOW_TEXTS,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        normalize_embeddings: bool | None = None,
        as_pooled: bool = False,
        truncate: bool = True,
        cancel: CancelSignal | None = None,
    ) -> Generator[Vectors, None, None]:
        """Embed texts from any iterable in bounded memory: one float32 `(dim,)` a text, in order.

        `window` texts are batched together, and the next window is read and tokenized meanwhile. The rest as `encode`.
        Counts as one call from the first vector to the last, or until the generator is closed.
        """
        require_process(self._scheduler.process)
        options = resolve_options(
            self._manifest,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            max_tokens=self._info.max_tokens,
            normalize=normalize_embeddings,
            as_pooled=as_pooled,
            batch_size=batch_size,
        )
        require_several(inputs, "an iterable of str")
        if not isinstance(window, Integral) or not 1 <= window <= sys.maxsize:
            raise UsageError(f"window: expected 1 or more, got {window!r}")
        return self._iterate(iter(inputs), window, options, cancel)

    def encode_ids(
        self,
        ragged: Ragged,
        *,
        batch_size: int | None = None,
        normalize_embeddings: bool | None = None,
        as_pooled: bool = False,
        timeout: float | None = None,
        cancel: CancelSignal | None = None,
        out: Vectors | None = None,
    ) -> Vectors:
        """Embed sentences of token ids, special tokens included: float32 `(n, dim)`. The rest as `encode`.

        Raises InputError with the index of a sentence that is empty, too long or has ids outside the vocabulary.
        """
        require_process(self._scheduler.process)
        options = resolve_options(
            self._manifest, normalize=normalize_embeddings, as_pooled=as_pooled, batch_size=batch_size
        )
        check_ids(ragged, self._manifest)
        vectors = rows_to_fill(out, len(ragged), self._info.dim)
        with self._call(timeout, cancel) as call:
            self._execution.embed_ids(ragged, vectors, options, call)
        return vectors

    @_takes_sentences
    def tokenize(
        self,
        inputs: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> Tokenized:
        """The ids that `encode` computes with, for `encode_ids`, and which texts were truncated."""
        require_process(self._scheduler.process)
        options = resolve_options(
            self._manifest,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            max_tokens=self._info.max_tokens,
        )
        texts = listed(inputs)
        with NATIVE:
            return self._execution.tokenize(texts, options)

    def warmup(self, lengths: Iterable[int] = (8, 32, 128), batch_size: int = 1, *, full_batch: bool = True) -> None:
        """Run a batch of each length, so that no later call is the first; lengths over `info.max_tokens` are cut.

        `full_batch`: also one of `info.max_batch_tokens`, as many callers make: OpenVINO compiles an int8 model for it.
        """
        most = self._info.max_tokens
        shapes = [(batch_size, min(length, most)) for length in lengths]
        if full_batch:
            length = min(WARMUP_LENGTH, most)
            shapes.append((max(1, self._info.max_batch_tokens // length), length))
        for n_rows, length in shapes:
            self.encode_ids(Ragged.from_sequences([[0] * length] * n_rows), batch_size=n_rows)

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text, special ones included: the model's limit, or less where it was set to less.

        Vectors of longer texts then change, and `info.space` with it. Setting it is not for while other threads encode.
        """
        return self._info.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, limit: int) -> None:
        least, most = self._tokenizer.least_tokens, self._manifest.text.max_tokens
        if not isinstance(limit, Integral) or isinstance(limit, bool) or not least <= limit <= most:
            raise UsageError(f"max_seq_length: expected {least} to {most}, the model's limit, got {limit!r}")
        text = dataclasses.replace(self._manifest.text, max_tokens=int(limit))
        manifest = dataclasses.replace(self._manifest, text=text)
        space = manifest.space(self._engine.precision, manifest.file(self._engine.file))
        self._info = dataclasses.replace(
            self._info, max_tokens=int(limit), space=self._engine.space if limit == most else space
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """A copy of the bundle's tokenizer, a `tokenizers.Tokenizer` that does not cut; `tokenize` does."""
        return self._tokenizer.copy()

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return self._info.dim

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self._info.dim

    @property
    def similarity_fn_name(self) -> Similarity:
        """How the checkpoint's vectors are compared: `cosine`, `dot`, `euclidean` or `manhattan`."""
        return self._manifest.similarity_function

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """How alike all rows of `(n, dim)` or `(dim,)` are to all of `(m, dim)` or `(dim,)`: float32 `(n, m)`.

        By `similarity_fn_name`. Both may be torch's tensors, wherever they are. Raises InputError for what is no
        vectors, and where the shapes do not fit.
        """
        return similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """How alike each row of `(n, dim)` is to the same row of another: float32 `(n,)`; of two `(dim,)`: `()`.

        The rest as `similarity`.
        """
        return pairwise_similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def close(self) -> None:
        """Wait for the running batch and release the engine; waiting calls get EncoderClosedError.

        Calling it twice is fine, as after an interrupt of the first time.
        """
        if os.getpid() == self._scheduler.process:
            self._scheduler.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self).load, **self._options), (self._info.bundle,), self.max_seq_length

    def __setstate__(self, max_seq_length: int) -> None:
        self.max_seq_length = max_seq_length

    def __repr__(self) -> str:
        info = self._info
        return f"<Encoder {info.model_id} {info.engine} on {info.backend} {info.device}, {info.n_threads} threads>"

    def _iterate(
        self, texts: Iterator[str], window: int, options: EncodeOptions, cancel: CancelSignal | None
    ) -> Generator[Vectors, None, None]:
        n_done = n_truncated = 0
        with self._call(None, cancel) as call:
            for vectors, n_cut in self._execution.embed_windows(texts, window, options, call):
                n_done += len(vectors)
                n_truncated += n_cut
                yield from (row.copy() for row in vectors)  # keeping one does not keep its window
        self._warn_of_truncation(n_truncated, n_done)

    def _resolve(
        self,
        prompt_name: str | None,
        prompt: str | None,
        batch_size: int | None,
        precision: str | None,
        normalize_embeddings: bool | None,
        truncate_dim: int | None,
        as_pooled: bool,
        truncate: bool | Literal["quietly"],
    ) -> tuple[EncodeOptions, VectorOptions]:
        """What `encode` and `aencode` have in common; EncoderClosedError in a fork."""
        require_process(self._scheduler.process)
        options = resolve_options(
            self._manifest,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate == "quietly" or truncate,
            max_tokens=self._info.max_tokens,
            normalize=normalize_embeddings,
            as_pooled=as_pooled,
            batch_size=batch_size,
        )
        form = resolve_vector_options(truncate_dim=truncate_dim, precision=precision, normalize=normalize_embeddings)
        return options, form

    def _call(self, timeout_s: float | None, cancel: CancelSignal | None) -> Call:
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(f"cancel: expected a threading.Event or the like, got {cancel!r}")
        n_pending = self._backend.info.n_pending
        return Call(self._scheduler, timeout_s=resolve_timeout(timeout_s), cancel=cancel, max_pending=n_pending)

    def _warn_of_truncation(self, n_truncated: int, n_texts: int) -> None:
        if not n_truncated:
            return
        warning = TruncationWarning(
            f"{n_truncated} of {n_texts} texts have more than {self._info.max_tokens} tokens and were cut there "
            "(encoder.tokenize says which; truncate=False refuses them)",
            n_truncated=n_truncated,
        )
        warnings.warn(warning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """How many calls lie between the one that asks and whoever called into this module, for a warning's place."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals is globals():
        frame, level = frame.f_back, level + 1
    return level


def _report_rows(report: Progress, n_texts: int, n_rows: int) -> None:
    report("embed", n_rows, n_texts)
