"""The flow of one call: texts to ids, one window ahead of the engine; ids to rows; rows to the length asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from mexma_runtime.backends.base import Backend
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.call.execution import PendingBatches, check_ids, embed
from mexma_runtime.call.options import EncodeOptions, with_prompt
from mexma_runtime.call.prefetch import run_ahead
from mexma_runtime.call.scheduler import Call
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.text.tokenizer import TextTokenizer, Tokenized
from mexma_runtime.types import Ragged, Vectors

INLINE_TEXTS = 64
"""So many texts are tokenized at once, without a thread."""
WINDOW_TEXTS = 4096
"""Texts that are planned together: enough for full batches of equal length."""


class Flow:
    """Joins a tokenizer and a backend; holds nothing of any one call, so that calls may run side by side."""

    def __init__(self, manifest: Manifest, tokenizer: TextTokenizer, backend: Backend) -> None:
        self._manifest, self._tokenizer, self._backend = manifest, tokenizer, backend
        self.tokenize_s = 0.0
        self._adding = threading.Lock()

    def tokenize(self, texts: list[str], options: EncodeOptions, first_index: int = 0) -> Tokenized:
        """The ids of `texts`; errors count texts from `first_index`."""
        start_s = time.perf_counter()
        prompted = with_prompt(options.prompt, texts)
        tokens = self._tokenizer.encode(prompted, truncate=options.truncate, first_index=first_index)
        check_ids(tokens.ragged, self._manifest, first_index=first_index)
        with self._adding:
            self.tokenize_s += time.perf_counter() - start_s
        return tokens

    def tokenized(self, texts: list[str], options: EncodeOptions, call: Call) -> Iterator[Tokenized]:
        """The same in windows, tokenized ahead where there are many texts."""
        if len(texts) <= INLINE_TEXTS:
            return iter((self.tokenize(texts, options),))
        starts = range(0, len(texts), WINDOW_TEXTS)
        return self.tokenized_windows((texts[i : i + WINDOW_TEXTS] for i in starts), options, call)

    def tokenized_windows(
        self, windows: Iterable[list[str]], options: EncodeOptions, call: Call
    ) -> Iterator[Tokenized]:
        """Each window of texts as ids, in order, one tokenized ahead in a thread."""

        def counted() -> Iterator[tuple[int, list[str]]]:
            first_index = 0
            for texts in windows:
                yield first_index, texts
                first_index += len(texts)

        return run_ahead(lambda window: self.tokenize(window[1], options, window[0]), counted(), call)

    def embed(
        self,
        ragged: Ragged,
        out: Vectors | DeviceRows,
        options: EncodeOptions,
        call: Call,
        pending: PendingBatches,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        """Start filling `out`, `(n, dim)`: see `execution.embed`."""
        embed(
            self._backend,
            ragged,
            out,
            call,
            pending,
            normalize=options.normalize,
            max_rows=options.batch_size,
            on_rows=on_rows,
        )

    def pending(self) -> PendingBatches:
        """For the batches of one call."""
        return PendingBatches(self._backend.info.n_pending)
