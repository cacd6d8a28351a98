"""How much a run measures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from mexma_benchmarks.adapters.protocol import ONCE, Turn


@dataclass(frozen=True, kw_only=True)
class RunSizes:
    """Sizes of a run. Rounds are as many as fit into a workload's share of time, within bounds."""

    grid: tuple[tuple[int, int], ...]
    """Sentences x tokens of the fixed shapes."""
    n_texts: int
    """Of real lengths."""
    with_their_ids: bool = False
    """Whether the ids of those texts are a workload too, in batches of the subjects' own."""
    one_sentence: Turn = ONCE
    """How often a sentence of the grid that is alone is embedded in a turn."""
    n_judged: int
    """Most sentences that fidelity is measured on."""
    n_judged_standin: int
    """The same where the weights are random, and it only shows that all compute the same."""
    share_s: float
    """Seconds that a workload may take in one heat."""
    min_rounds: int
    max_rounds: int
    n_cold_starts: int
    all_under_load: bool
    """Whether latency under load is measured of every subject; False: of the baseline and the first engine."""
    load_s: float
    """Seconds of arrivals at each rate."""
    rates_per_s: tuple[float, ...]
    """Arrival rates, ascending; empty: `relative_rates`."""
    relative_rates: tuple[float, ...]
    """Rates as multiples of what the baseline can serve one by one."""
    n_refinements: int
    """Rates that are tried between the last one that kept the bound and the first that did not."""
    client_s: float
    """Seconds that clients in a closed loop go on, in each round and for each number of them."""
    n_client_rounds: int
    beside_s: float
    """Seconds in which single texts come beside a caller that never stops, in each round."""
    p99_bound_ms: float | None
    """None: four times the baseline's time for one text."""

    def n_rounds(self, round_s: float) -> int:
        """How often a round that takes `round_s` is measured."""
        return min(self.max_rounds, max(self.min_rounds, int(self.share_s / max(round_s, 1e-6))))

    def described(self) -> dict[str, str | int | float | None]:
        """Every size, as a result keeps it."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(v) if isinstance(v, tuple | Turn) else v for name, v in sizes.items()}


class Effort(StrEnum):
    """How much time a run may take."""

    SMOKE = "smoke"
    """Whether everything runs; its figures mean nothing."""
    QUICK = "quick"
    """For a decision: PyTorch and two engines at full size in about eight minutes on two cores."""
    FULL = "full"
    """For a result that is published."""


_SMOKE = RunSizes(
    grid=((1, 16), (2, 8)),
    n_texts=6,
    n_judged=12,
    n_judged_standin=12,
    share_s=0,
    min_rounds=2,
    max_rounds=2,
    n_cold_starts=1,
    all_under_load=False,
    load_s=0.5,
    rates_per_s=(),
    relative_rates=(0.1,),
    n_refinements=0,
    client_s=0.2,
    n_client_rounds=1,
    beside_s=0.3,
    p99_bound_ms=None,
)
_QUICK = RunSizes(
    grid=((1, 16), (1, 128), (8, 32), (32, 32)),
    n_texts=128,
    n_judged=160,
    n_judged_standin=16,
    share_s=6,
    min_rounds=5,
    max_rounds=30,
    n_cold_starts=3,
    all_under_load=False,
    load_s=8,
    rates_per_s=(),
    relative_rates=(0.5, 1.0, 2.0),
    n_refinements=1,
    client_s=3,
    n_client_rounds=2,
    beside_s=5,
    p99_bound_ms=None,
)
_FULL = RunSizes(
    grid=((1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (8, 32), (32, 32)),
    n_texts=256,
    n_judged=320,
    n_judged_standin=24,
    share_s=12,
    min_rounds=5,
    max_rounds=40,
    n_cold_starts=5,
    all_under_load=True,
    load_s=8,
    rates_per_s=(),
    relative_rates=(0.5, 1.0, 2.0, 4.0),
    n_refinements=1,
    client_s=6,
    n_client_rounds=3,
    beside_s=20,
    p99_bound_ms=None,
)
SIZES = MappingProxyType({Effort.SMOKE: _SMOKE, Effort.QUICK: _QUICK, Effort.FULL: _FULL})
