"""How subjects serve many callers at once, as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mexma_benchmarks.report.formats import NOTHING, escape, interval, number, table
from mexma_benchmarks.result.measured import BesidePoint, ClientPoint, beside_points, client_points
from mexma_benchmarks.result.result import ModelResult


def many_callers(model: ModelResult) -> Iterator[str]:
    """Clients in a closed loop, and single texts beside a caller that never stops."""
    clients, beside = client_points(model), beside_points(model)
    if clients or beside:
        yield "### Many callers at once"
    if clients:
        yield (
            "Each caller asks again as soon as it has its answer. The share is that of one caller's rate who has as "
            "many texts in each call as there are callers of one text: of the rounds' shares the median. Latencies of "
            "calls in ms."
        )
        yield table(
            ["subject", "callers", "texts a call", "texts/s", "share", "p50", "p99"],
            [_client_row(point) for point in clients],
        )
    if beside:
        first = beside[0]
        yield (
            f"One text every {number(first.every_ms)} ms, beside a thread that embeds {first.n_texts:,} over and over; "
            "a latency runs from the text's time, waiting included. How many of the fullest batches it waited, beyond "
            "what one text takes alone, is in the last column; all in ms."
        )
        yield table(
            ["subject", "requests", "alone", "fullest batch", "p50", "p99", "p99 in batches"],
            [_beside_row(point) for point in beside],
        )


def _client_row(point: ClientPoint) -> list[str]:
    return [
        escape(point.subject),
        f"{point.n_clients} {point.clients if point.n_clients > 1 else point.clients.removesuffix('s')}",
        str(point.texts_a_call),
        interval(point.texts_per_s),
        NOTHING if point.share is None else f"{point.share:.0%}",
        number(point.p50),
        number(point.p99),
    ]


def _beside_row(point: BesidePoint) -> list[str]:
    return [
        escape(point.subject),
        f"{point.n_requests:,}",
        number(point.alone),
        NOTHING if point.batch is None else number(point.batch),
        number(point.p50),
        number(point.p99),
        NOTHING if point.batch is None else f"{(point.p99 - point.alone) / point.batch:.2f}",
    ]
