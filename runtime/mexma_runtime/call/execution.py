"""The way of one call: texts to ids, ahead of the engine; ids to batches, started in turns; rows to their length."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

import numpy as np

from mexma_runtime.backends.base import Backend, Finish
from mexma_runtime.batching import Rows, rows_left, take_batch
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.call.call import Call
from mexma_runtime.call.options import EncodeOptions, require_texts
from mexma_runtime.call.prefetch import run_ahead
from mexma_runtime.call.request import Request
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import InputError
from mexma_runtime.process import NATIVE
from mexma_runtime.text.tokenizer import TextTokenizer, Tokenized
from mexma_runtime.types import Ragged, Vectors, are_neighbours
from mexma_runtime.vectors import normalize_rows

INLINE_TEXTS = 64
"""So many texts are tokenized at once, without a thread."""
WINDOW_TEXTS = 4096
"""Texts that are batched together: enough for full batches of equal length."""

OnRows = Callable[[int], None]
"""Called with the number of rows that are done."""


class Execution:
    """Joins a tokenizer and a backend; holds nothing of any one call, so that calls may run side by side."""

    def __init__(self, manifest: Manifest, tokenizer: TextTokenizer, backend: Backend) -> None:
        self._manifest, self._tokenizer, self._backend = manifest, tokenizer, backend
        self._info = backend.info
        self.tokenize_s = 0.0
        self._adding = threading.Lock()

    def tokenize(self, texts: Sequence[str], options: EncodeOptions, first_index: int = 0) -> Tokenized:
        """The ids of `texts`, which are str; errors count them from `first_index`."""
        start_s = time.perf_counter()
        prompted = [options.prompt + text for text in texts] if options.prompt else texts
        tokens = self._tokenizer.encode(
            prompted, truncate=options.truncate, first_index=first_index, max_tokens=options.max_tokens
        )
        check_ids(tokens.ragged, self._manifest, first_index)  # a tokenizer may give a text no token at all
        with self._adding:
            self.tokenize_s += time.perf_counter() - start_s
        return tokens

    def embed_texts(
        self,
        texts: Sequence[str],
        out: Vectors | DeviceRows,
        options: EncodeOptions,
        call: Call,
        on_rows: OnRows | None = None,
    ) -> int:
        """Write the vector of each of `texts`, which are str, into its row of `out`, `(n, dim)`.

        Returns how many were cut. Raises what `Call.turn` raises; `on_rows` is called as each batch is done.
        """
        n_done = n_truncated = 0
        for tokens in self._tokenized(texts, options, call):
            rows = out[n_done : n_done + len(tokens.ragged)]
            told = on_rows and functools.partial(_add, on_rows, n_done)
            self._start(tokens.ragged, rows, options, call, told, first_index=n_done)
            n_done += len(rows)
            n_truncated += int(tokens.truncated.sum())
        call.pending.finish()
        return n_truncated

    def embed_windows(
        self, texts: Iterator[str], window: int, options: EncodeOptions, call: Call
    ) -> Iterator[tuple[Vectors, int]]:
        """Vectors of each `window` of texts, float32 `(n, dim)`, in order, and how many texts of it were cut.

        The next window is read and tokenized while one is computed. InputError where a text is not a str.
        """
        windows = iter(lambda: list(islice(texts, window)), [])
        started: deque[tuple[Vectors, int, int]] = deque()
        numbered = zip(count(step=window), windows, strict=False)

        def ids(numbered: tuple[int, list[str]]) -> Tokenized:
            first_index, texts = numbered
            return self.tokenize(require_texts(texts, first_index), options, first_index)

        for first_index, tokens in zip(count(step=window), run_ahead(ids, numbered, call), strict=False):
            vectors = np.empty((len(tokens.ragged), self._manifest.dim), dtype=np.float32)
            self._start(tokens.ragged, vectors, options, call, first_index=first_index)
            started.append((vectors, call.pending.n_started, int(tokens.truncated.sum())))
            # On a device, one window is under way while the vectors of those before it are taken.
            while started and (len(started) > 1 or call.pending.is_finished(started[0][1])):
                yield _finished(*started.popleft(), call)
        while started:
            yield _finished(*started.popleft(), call)

    def embed_ids(self, ragged: Ragged, out: Vectors, options: EncodeOptions, call: Call) -> None:
        """Write the vector of each sentence of ids into its row of `out`, `(n, dim)`."""
        self._start(ragged, out, options, call)
        call.pending.finish()

    def _tokenized(self, texts: Sequence[str], options: EncodeOptions, call: Call) -> Iterable[Tokenized]:
        """The ids of `texts`: of many in windows, one tokenized ahead in a thread, or all where one may be refused."""
        if len(texts) <= INLINE_TEXTS:
            with NATIVE:
                return (self.tokenize(texts, options),)
        starts = range(0, len(texts), WINDOW_TEXTS)
        windows = run_ahead(lambda i: self.tokenize(texts[i : i + WINDOW_TEXTS], options, i), starts, call)
        # What can be refused is looked at as a whole, before hours are spent on what stands in front of it.
        return list(windows) if self.may_refuse(texts, options) else windows

    def _start(
        self,
        ragged: Ragged,
        out: Vectors | DeviceRows,
        options: EncodeOptions,
        call: Call,
        on_rows: OnRows | None = None,
        *,
        first_index: int = 0,
    ) -> None:
        """Start the batches of `ragged`, each in a turn of its own; all are done when `call.pending` says so.

        As soon as others want the engine, what is left is computed together with theirs, and done when this returns.

        InputError, which counts sentences from `first_index`, where the backend refuses one.
        """
        request = self.request(ragged, options, call, first_index=first_index)
        sink = Sink(out, normalize=options.normalize and not request.in_graph, on_rows=on_rows)
        left = request.left
        scratch: Vectors | None = None

        def finished(finish: Finish, rows: Rows, scattered: Vectors | None) -> None:
            finish()
            sink.take(rows, scattered)

        while left.n_rows:
            # What stays on a device is not joined: a batch is written to one place there.
            with call.turn(alone=isinstance(out, np.ndarray)) as has_engine:
                if not has_engine:
                    break
                [(rows, _)] = take_batch(left)
                n_rows, first = rows.size, int(rows[0])
                scattered = None
                if not are_neighbours(rows):
                    # What is under way keeps its own.
                    if scratch is None or len(scratch) < n_rows or self._info.n_pending > 1:
                        scratch = np.empty((n_rows, self._manifest.dim), dtype=np.float32)
                    scattered = scratch[:n_rows]
                written = out[first : first + n_rows] if scattered is None else scattered
                try:
                    finish = self._backend.start(ragged.select(rows), written, normalize=request.in_graph)
                except InputError as error:
                    raise InputError(str(error), index=first_index + first) from None
            call.pending.add(functools.partial(finished, finish, rows, scattered))
        if left.n_rows:
            call.join(request, sink.take)

    def request(self, ragged: Ragged, options: EncodeOptions, call: Call, *, first_index: int = 0) -> Request:
        """All of `ragged`."""
        return Request(
            ragged=ragged,
            left=rows_left(ragged.lengths, self._info.policy, options.batch_size),
            in_graph=options.normalize and self._info.normalizes,
            first_index=first_index,
            deadline=call.deadline,
            cancel=call.cancel,
        )

    def may_refuse(self, texts: Sequence[str], options: EncodeOptions) -> bool:
        """Whether one of `texts` may turn out to be no input when it is tokenized."""
        return self._tokenizer.may_refuse(texts, truncate=options.truncate)


class Sink:
    """Where the vectors of one input go, in whatever order they come."""

    def __init__(self, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None) -> None:
        """`normalize`: whether vectors get length 1 here; those that stay on a device never do."""
        self._out, self._normalize, self._on_rows = out, normalize, on_rows
        self._n_done = 0

    def take(self, rows: Rows, vectors: Vectors | None) -> None:
        """Write the vectors of `rows`, float32 `(n, dim)`; None: neighbours, which are written already."""
        out = self._out
        if isinstance(out, np.ndarray):
            found = out[rows[0] : rows[-1] + 1] if vectors is None else vectors
            if self._normalize:
                normalize_rows(found)
            if vectors is not None and rows.size == 1 and type(out) is np.ndarray:
                # NumPy would let go of the interpreter for it, and wait until others give it back.
                out[rows[0]].data.cast("B")[:] = vectors[0].data.cast("B")
            elif vectors is not None:
                out[rows] = vectors
        self._n_done += rows.size
        if self._on_rows:
            self._on_rows(self._n_done)


def check_ids(ragged: Ragged, manifest: Manifest, first_index: int = 0) -> None:
    """InputError, which counts sentences from `first_index`, for ids or lengths that the model has no rows for."""
    if not isinstance(ragged, Ragged):
        raise InputError(f"expected a Ragged, got {type(ragged).__name__}: Ragged.from_sequences makes one of lists")
    max_tokens, vocab_size = manifest.text.max_tokens, manifest.model.vocab_size
    lengths = ragged.lengths
    if not lengths.size:
        return
    # As unsigned numbers, negative ids are large.
    if lengths.min() >= 1 and lengths.max() <= max_tokens and ragged.ids.view(np.uint32).max() < vocab_size:
        return
    bad_rows = np.flatnonzero((lengths < 1) | (lengths > max_tokens))
    if bad_rows.size:
        row = int(bad_rows[0])
        raise InputError(f"expected 1 to {max_tokens} tokens, got {lengths[row]}", index=first_index + row)
    bad_ids = np.flatnonzero((ragged.ids < 0) | (ragged.ids >= vocab_size))
    if bad_ids.size:
        row = int(np.searchsorted(ragged.offsets, bad_ids[0], side="right")) - 1
        raise InputError(
            f"expected token ids from 0 to {vocab_size - 1}, got {ragged.ids[bad_ids[0]]}", index=first_index + row
        )


def _finished(vectors: Vectors, n_batches: int, n_truncated: int, call: Call) -> tuple[Vectors, int]:
    call.pending.finish(n_batches)
    return vectors, n_truncated


def _add(on_rows: OnRows, n_before: int, n_rows: int) -> None:
    on_rows(n_before + n_rows)
