"""Many callers at once: clients in a closed loop, and single texts beside a caller that never stops."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from mexma_benchmarks.result.result import BesideRun, ClientRun, ModelResult
from mexma_benchmarks.run.heat import Answer, Heat
from mexma_benchmarks.run.process import NotOfferedError
from mexma_benchmarks.run.sizes import RunSizes
from mexma_benchmarks.run.timing import take_turns
from mexma_benchmarks.run.workload import FIRST_ID

N_CLIENTS = 64
CASES = (
    {"clients": "threads", "n_clients": 1, "texts_a_call": 1},
    {"clients": "threads", "n_clients": N_CLIENTS, "texts_a_call": 1},
    {"clients": "coroutines", "n_clients": N_CLIENTS, "texts_a_call": 1},
    {"clients": "threads", "n_clients": 1, "texts_a_call": N_CLIENTS},
)
"""One caller, many of one text each, and one who has as many texts in each call: what many can be held against."""
N_BESIDE = 4096
"""Texts in a call of the caller that never stops."""
EVERY_S = 0.1
BATCH_LENGTH = 12
"""Tokens of each sentence of the fullest batch: the mean of real ones."""
N_ALONE = 20


def measure_clients(
    heat: Heat,
    names: Sequence[str],
    texts: Sequence[str],
    sizes: RunSizes,
    model: ModelResult,
    *,
    report: Callable[[str], None],
) -> None:
    """The subjects take turns; in its turn each has all cases, since they are held against one another."""

    def ask(name: str, request: Answer) -> Answer | None:
        report(name)
        try:
            return heat.ask(name, request)
        except NotOfferedError:
            return None

    def serve(name: str) -> list[ClientRun]:
        request = {"do": "serve_clients", "texts": list(texts), "seconds": sizes.client_s}
        answers = [(case, ask(name, request | case)) for case in CASES]
        return [ClientRun(subject=name, **case, **answer) for case, answer in answers if answer]  # type: ignore[arg-type]

    served = take_turns({name: functools.partial(serve, name) for name in names})
    for _, runs in zip(range(sizes.n_client_rounds), served, strict=False):
        model.client_runs += itertools.chain.from_iterable(runs.values())
    many = [texts[i % len(texts)] for i in range(N_BESIDE)]
    request = {
        "do": "serve_beside",
        "texts": many,
        "arrivals_s": [EVERY_S * (i + 1) for i in range(max(1, round(sizes.beside_s / EVERY_S)))],
        "n_alone": N_ALONE,
        "n_tokens": BATCH_LENGTH,
        "id": FIRST_ID,
    }
    turns = take_turns({name: functools.partial(ask, name, request) for name in names})
    for _, answers in zip(range(sizes.n_client_rounds), turns, strict=False):
        for name, answer in answers.items():
            if answer:
                run = BesideRun(subject=name, n_texts=len(many), every_ms=EVERY_S * 1e3, **answer)
                model.beside_runs.append(run)
