"""How the benchmark talks to a subject's process: one JSON object a line in, one a line out.

`python -m mexma_benchmarks.adapters.NAME serve TASK` opens the model, embeds one text and writes `{"ready": ...}`;
then it answers `{"do": "encode" | "encode_ids" | "encode_ragged" | "serve_load" | "serve_clients" | "serve_beside" |
"vectors", ...}` until its input ends. The first three are timed: once, or `n_calls` times in a turn as `Turn` says.
`prepare TASK` only converts the checkpoint, into the task's folder. An answer `{"error": ...}` says why there is none,
and `{"not_offered": ...}` that the library has no such thing.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.clients import Repeated, serve_coroutines, serve_threads
from mexma_benchmarks.adapters.load import serve_arrivals

Vectors = NDArray[np.float32]
Ids = NDArray[np.int32]
Lengths = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to run; plain values, sent as JSON."""

    checkpoint: str
    """Folder with config.json and model.safetensors."""
    tokenizer: str
    """Folder with tokenizer.json."""
    pooling: str
    """`cls` or `mean`."""
    is_normalized: bool
    max_tokens: int
    n_threads: int
    device: str
    """`cpu`, `cuda` or `cuda:N`."""
    folder: str
    """What `prepare` wrote and `serve` reads; the adapter's own."""
    first_text: str
    """Embedded before the subject is ready."""
    options: dict[str, Any] = field(default_factory=dict)
    """What tells the variants of one adapter apart."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How often a subject does what it is asked when it is its turn; in the request, where it is not once."""

    n_calls: int = 1
    n_warmups: int = 0
    """Calls before those that count: a process that was woken a moment ago is slow."""
    limit_s: float | None = None
    """No call is begun later than this after the first that counts; None: whatever it takes."""


ONCE = Turn()


class NotOfferedError(Exception):
    """The library has no such interface: a fact for the report, not a failure."""


class Model:
    """A model that an adapter opened. Vectors are float32 `(n, dim)`, in the input's order, as the task pools them."""

    versions: Mapping[str, str]
    """Of the libraries that matter, by the name of their package."""
    provider: str = "CPU"
    """What computes, as the library names it."""
    batching: str = "batches of 32, sorted by length"
    """How `encode` makes batches of many texts, for the report."""
    n_workers: int = 1
    """Threads that call `encode` at once under load: several where the library serves callers side by side."""
    max_batch_tokens: int = 0
    """Tokens that it computes together at most, where it says so."""
    is_remote: bool = False
    """Whether another process computes, so that this one's memory says nothing."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts as the library's users would."""
        raise NotImplementedError

    def encode_async(self, texts: Sequence[str]) -> Awaitable[Vectors]:
        """The same in an event loop."""
        raise NotOfferedError("it has no interface for asyncio")

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed one batch of token ids of equal length, special tokens included."""
        raise NotOfferedError("it takes texts only")

    def encode_ragged(self, ids: Ids, lengths: Lengths) -> Vectors:
        """Embed sentences of any lengths, in batches of its own: `ids` `(total,)` end to end, `lengths` `(n,)`."""
        raise NotOfferedError("it makes no batches of ids")

    def warm_up(self) -> None:
        """What a service of it would do before its first request."""

    def stages_s(self) -> dict[str, float]:
        """Seconds spent so far in `tokenize`, `copy` and `compute`, where the library tells them apart."""
        return {}


def prepare_nothing(task: Task) -> None:
    """For adapters that run the checkpoint as it is."""


def run_adapter(open_model: Callable[[Task], Model], prepare: Callable[[Task], None] = prepare_nothing) -> None:
    """The whole main program of an adapter."""
    # A library that prints must not get in between the lines.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_parent()
    try:
        task = Task(**json.loads(sys.argv[2]))
        if sys.argv[1] == "prepare":
            prepare(task)
            _write(lines, {"prepared": True})
            return
        model = open_model(task)
        model.encode([task.first_text])
        reached_s = time.monotonic()  # the machine's clock, not the process's
    except NotOfferedError as error:
        _write(lines, {"not_offered": str(error)})
        raise
    except Exception as error:
        _write(lines, {"error": f"{type(error).__name__}: {error}"})
        raise
    _write(
        lines,
        {
            "ready": {
                "reached_s": reached_s,
                "peak_rss_bytes": None if model.is_remote else peak_rss_bytes(),
                "versions": dict(model.versions),
                "provider": model.provider,
                "batching": model.batching,
            }
        },
    )
    for line in sys.stdin:
        _write(lines, _answer(model, json.loads(line)))


def _answer(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    turn = Turn(**request.get("turn", {}))
    try:
        match request["do"]:
            case "encode":
                return _timed(model, lambda: model.encode(request["texts"]), turn)
            case "encode_ids":
                batch: Any = np.asarray(request["ids"], dtype=np.int32)
                return _timed(model, lambda: model.encode_ids(batch), turn)
            case "encode_ragged":
                ids = np.frombuffer(base64.b64decode(request["int32"]), dtype="<i4")
                lengths = np.asarray(request["lengths"], dtype=np.int64)
                return _timed(model, lambda: model.encode_ragged(ids, lengths), turn)
            case "vectors":
                return _packed(model.encode(request["texts"]))
            case ("serve_load" | "serve_clients" | "serve_beside") as what:
                model.warm_up()
                return _SERVED[what](model, request)
            case unknown:
                return {"error": f"unknown request {unknown!r}"}
    except NotOfferedError as error:
        return {"not_offered": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its row's reason
        return {"error": f"{type(error).__name__}: {error}"}


def _timed(model: Model, call: Callable[[], object], turn: Turn) -> dict[str, Any]:
    for _ in range(turn.n_warmups):
        call()
    before, calls_ms = model.stages_s(), list[float]()
    until_s = time.perf_counter() + (float("inf") if turn.limit_s is None else turn.limit_s)
    while not calls_ms or (len(calls_ms) < turn.n_calls and time.perf_counter() < until_s):
        calls_ms.append(_seconds_of(call) * 1e3)
    return {
        "ms": median(calls_ms),
        "calls_ms": calls_ms if turn.n_calls > 1 else [],
        "stages_ms": {name: (s - before[name]) * 1e3 / len(calls_ms) for name, s in model.stages_s().items()},
    }


def _serve_load(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    texts = request["texts"]
    latencies_s = serve_arrivals(
        request["arrivals_s"],
        lambda i: model.encode([texts[i % len(texts)]]),
        patience_s=request["patience_s"],
        n_workers=model.n_workers,
    )
    return {"latencies_ms": _ms(latencies_s)}


def _serve_clients(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    texts, n = request["texts"], request["texts_a_call"]

    def of_call(i: int) -> list[str]:
        return [texts[(i * n + k) % len(texts)] for k in range(n)]

    how = {"n_clients": request["n_clients"], "seconds": request["seconds"]}
    if request["clients"] == "threads":
        latencies_s, seconds = serve_threads(lambda i: model.encode(of_call(i)), **how)
    else:
        latencies_s, seconds = serve_coroutines(lambda i: model.encode_async(of_call(i)), **how)
    return {"latencies_ms": _ms(latencies_s), "seconds": seconds}


def _serve_beside(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    """One text at a time, and full batches, alone; then texts at their times, beside a thread that embeds them all."""
    texts, n_alone, n_tokens = request["texts"], request["n_alone"], request["n_tokens"]
    alone_s = [_seconds_of(partial(model.encode, [texts[i % len(texts)]])) for i in range(n_alone)]
    batch: Any = np.full((max(1, model.max_batch_tokens // n_tokens), n_tokens), request["id"], dtype=np.int32)
    batch_s = [_seconds_of(partial(model.encode_ids, batch)) for _ in range(n_alone if model.max_batch_tokens else 0)]
    with Repeated(partial(model.encode, texts)):
        latencies_s = serve_arrivals(
            request["arrivals_s"], lambda i: model.encode([texts[i % len(texts)]]), n_workers=model.n_workers
        )
    return {"alone_ms": _ms(alone_s), "batch_ms": _ms(batch_s), "latencies_ms": _ms(latencies_s)}


_SERVED = {"serve_load": _serve_load, "serve_clients": _serve_clients, "serve_beside": _serve_beside}


def _seconds_of(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def _ms(seconds: Sequence[float]) -> list[float]:
    return [round(s * 1e3, 3) for s in seconds]


def ragged_request(ids: Ids, lengths: Lengths) -> dict[str, Any]:
    """The request `encode_ragged`; hundreds of thousands of ids would be long as JSON."""
    packed = base64.b64encode(ids.astype("<i4").tobytes()).decode("ascii")
    return {"do": "encode_ragged", "int32": packed, "lengths": lengths.tolist()}


def _packed(vectors: Vectors) -> dict[str, Any]:
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    return {"shape": rows.shape, "float32": base64.b64encode(rows.tobytes()).decode("ascii")}


def unpack(answer: Mapping[str, Any]) -> Vectors:
    """The vectors of an answer to `vectors`."""
    return np.frombuffer(base64.b64decode(answer["float32"]), dtype="<f4").reshape(answer["shape"])


def peak_rss_bytes(pid: int | Literal["self"] = "self") -> int:
    """Peak resident memory of a process, pages of mapped files included. Linux only."""
    # ru_maxrss would count what the parent held when it forked.
    with Path(f"/proc/{pid}/status").open(encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _write(lines: TextIO, answer: dict[str, Any]) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


def _end_with_parent() -> None:
    """A subject may be frozen when the benchmark is killed: the kernel then ends it too."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
