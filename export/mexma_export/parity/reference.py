"""The judge: transformers' own model in fp32 on the CPU, tokenizing with transformers too. PyTorch lives here alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mexma_export.checkpoint.naming import IGNORED
from mexma_runtime.errors import CheckpointError, EncoderClosedError, InputError, MissingDependencyError
from mexma_runtime.types import Pooling, Ragged, Vectors

Count = Callable[[int, int], None]
"""Called after each batch with the sentences done and the sentences in all."""


@dataclass(frozen=True, kw_only=True)
class ReferenceVersions:
    """The libraries that the reference was computed with."""

    torch: str
    transformers: str


class Reference:
    """What sentence-transformers computes from the same checkpoint, computed by transformers' own model.

    Made by `load_reference`. One call at a time; `close()`, or leaving a `with`, frees the weights.
    """

    versions: ReferenceVersions
    attention: str
    """The attention that the model runs, in transformers' word for it: "sdpa"."""
    threads: int
    """Threads of one operation, for the whole process as PyTorch has it."""
    dim: int
    max_tokens: int

    def __init__(self, model: Any, tokenizer: Any, *, pooling: Pooling, normalize: bool, max_tokens: int) -> None:
        import torch
        import transformers

        self._model, self._tokenizer = model, tokenizer
        self._pooling, self._normalize, self.max_tokens = pooling, normalize, max_tokens
        self.versions = ReferenceVersions(torch=torch.__version__, transformers=transformers.__version__)
        self.attention = model.config._attn_implementation
        self.threads = torch.get_num_threads()
        self.dim = model.config.hidden_size
        self._padding_id = _padding_id(model)

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        sort_by_length: bool = False,
        progress: Count | None = None,
    ) -> Vectors:
        """Embed `texts`: float32 `(n, dim)`, in input order, owned by the caller.

        Over-long texts are truncated to `max_tokens`. With `sort_by_length` the batches are made of the longest texts
        first, by characters, as sentence-transformers makes them; else in the order given. A batch is padded to its
        longest text.
        """

        def inputs(rows: NDArray[np.intp]) -> Any:
            batch = [texts[row] for row in rows]
            return self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )

        order = np.arange(len(texts))
        if sort_by_length:
            order = np.argsort([-len(text) for text in texts], kind="stable")
        return self._run(inputs, order, batch_size, progress)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of `texts` as transformers makes them, special ones included, cut at `max_tokens`."""
        if self._model is None:
            raise EncoderClosedError("this reference was closed: load it again")
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens).input_ids
        return ids

    def encode_ids(
        self, sequences: Ragged | Sequence[Sequence[int]], *, batch_size: int = 32, progress: Count | None = None
    ) -> Vectors:
        """Embed sentences of token ids, special ones included: float32 `(n, dim)`, in input order.

        Raises:
            InputError: a sentence has no tokens, or more than `max_tokens`.
        """
        import torch

        lengths = [len(sequences[row]) for row in range(len(sequences))]
        for row, length in enumerate(lengths):
            if not 1 <= length <= self.max_tokens:
                raise InputError(f"expected 1 to {self.max_tokens} tokens, got {length}", index=row)

        def inputs(rows: NDArray[np.intp]) -> Any:
            shape = (len(rows), max(lengths[row] for row in rows))
            ids = torch.full(shape, self._padding_id)
            mask = torch.zeros(shape, dtype=torch.int64)
            for i, row in enumerate(rows):
                ids[i, : lengths[row]] = torch.tensor(sequences[row])
                mask[i, : lengths[row]] = 1
            return {"input_ids": ids, "attention_mask": mask}

        return self._run(inputs, np.arange(len(lengths)), batch_size, progress)

    def _run(
        self,
        inputs: Callable[[NDArray[np.intp]], Any],
        order: NDArray[np.intp],
        batch_size: int,
        progress: Count | None,
    ) -> Vectors:
        if self._model is None:
            raise EncoderClosedError("this reference was closed: load it again")
        vectors = np.empty((len(order), self.dim), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._embed(inputs(rows))
            if progress is not None:
                progress(start + len(rows), len(order))
        return vectors

    def _embed(self, inputs: Any) -> Vectors:
        """One padded batch. Pooling and normalisation as sentence-transformers' modules of those names do them."""
        import torch

        with torch.inference_mode():
            tokens = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"]
            if self._pooling is Pooling.CLS:
                pooled = tokens[torch.arange(len(tokens)), mask.argmax(dim=1)]  # not 0: a tokenizer may pad on the left
            else:
                weights = mask.unsqueeze(-1).to(tokens.dtype)
                pooled = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, p=2, dim=-1)
            vectors: Vectors = pooled.numpy()
            return vectors

    def close(self) -> None:
        """Free the weights; calling it twice is fine."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_reference(
    folder: Path,
    *,
    pooling: Pooling,
    normalize: bool,
    max_tokens: int,
    lower_case: bool = False,
    tokenizer: Path | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Reference:
    """Load the checkpoint in `folder` (the hub's layout, safetensors) as the reference; nothing is fetched or printed.

    `tokenizer` is a folder, for a checkpoint that has none of its own; `tokenizer_options` stand in place of what its
    tokenizer_config.json says. `lower_case` is do_lower_case of
    sentence_bert_config.json. `threads` sets PyTorch's threads for the whole process. fp32 weights stay mapped to the
    file, so it must not change before `close()`; other types are converted to fp32 in memory.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        CheckpointError: transformers cannot load the model or the tokenizer, or had to invent or drop weights.
    """
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            error.name or "torch", needed_for="the reference that parity is measured against", extra="reference"
        ) from error

    tokenizer_folder = tokenizer or folder
    if threads is not None:
        torch.set_num_threads(threads)
    with _quiet():
        with _refusal(folder):
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, with the shapes
                output_loading_info=True,
            )
        if problems := _problems(report):
            raise CheckpointError(folder, problems)
        with _refusal(tokenizer_folder):
            their_tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_folder, local_files_only=True, **(tokenizer_options or {})
            )
    files = sorted(their_tokenizer.vocab_files_names.values())
    if not any((tokenizer_folder / file).is_file() for file in files):  # transformers then makes up an empty one
        raise CheckpointError(tokenizer_folder, [f"no tokenizer: expected one of {', '.join(files)}"])
    if their_tokenizer.pad_token is None:  # a tokenizer.json by itself does not name it
        their_tokenizer.pad_token = their_tokenizer.convert_ids_to_tokens(_padding_id(model))
    if lower_case:
        _lower_case(their_tokenizer, tokenizer_folder)
    return Reference(model.eval(), their_tokenizer, pooling=pooling, normalize=normalize, max_tokens=max_tokens)


def _problems(report: dict[str, Any]) -> list[str]:
    """What transformers invented or dropped, by its loading report."""
    named = [(name, flaw) for flaw in ("missing", "unexpected") for name in report[f"{flaw}_keys"]]
    problems = [f"tensor {name} is {flaw}" for name, flaw in sorted(named) if not IGNORED.fullmatch(name)]
    for name, theirs, expected in sorted(report["mismatched_keys"]):
        problems.append(f"tensor {name} has shape {tuple(theirs)}, expected {tuple(expected)}")
    return problems


def _padding_id(model: Any) -> int:
    """BERT's may be null or negative."""
    return max(model.config.pad_token_id or 0, 0)


def _lower_case(tokenizer: Any, where: Path) -> None:
    """What do_lower_case of sentence_bert_config.json makes of a tokenizer in sentence-transformers 6.2."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Chain

    if not tokenizer.is_fast:
        raise CheckpointError(where, [f"do_lower_case with {type(tokenizer).__name__}, which has no tokenizer.json"])
    own = tokenizer.backend_tokenizer.normalizer
    chain = list(own) if isinstance(own, Chain) else [] if own is None else [own]  # type: ignore[call-overload]
    if not any(isinstance(step, Lowercase) for step in chain):
        tokenizer.backend_tokenizer.normalizer = Chain([Lowercase(), *chain])


@contextmanager
def _refusal(where: Path) -> Iterator[None]:
    """transformers' many exceptions about a folder, as one of ours."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(where, [f"transformers cannot load it: {error}"]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports, and put its settings back."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
