"""How a Unigram model ends a run like "aaaa...": the same best path that tokenizers finds, without walking all of it.

Many segmentations of such a run have the same score ("aa aa a", "aa a aa"), so that what breaks the tie at its far end
can decide its first token: the rounding of sums. Here they are rounded in the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tokenizers import Tokenizer

UNKNOWN_PENALTY = 10.0
MAX_STEPS = 1 << 17


class Viterbi:
    """The scores of a Unigram model, and the best path that follows from them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = json.loads(tokenizer.to_str())["model"]
        self._scores: dict[str, float] = dict(model["vocab"])
        self._unknown = min(self._scores.values()) - UNKNOWN_PENALTY
        self._ids = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
        self._unknown_id: int | None = model["unk_id"]
        self._longest = max(map(len, self._scores))

    def best_scores(self, word: str) -> tuple[list[float], list[int]]:
        """For each position, 0 to the length of `word`: the score of the best path to it, where its last piece starts.

        As `Unigram::encode_optimized` in tokenizers: of equal scores, that with the longest last piece.
        """
        best, starts = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
        for start in range(len(word)):
            for end in range(start + 1, min(start + self._longest, len(word)) + 1):
                score = self._score(word[start:end])
                if score is not None and best[start] + score > best[end]:
                    best[end], starts[end] = best[start] + score, start
        return best, starts

    def ids(self, word: str, starts: Sequence[int]) -> list[int | None]:
        """The ids of the best path, `starts` being what `best_scores` says; neighbouring unknown characters are one."""
        ids: list[int | None] = []
        end = len(word)
        while end > 0:
            piece = self._ids.get(word[starts[end] : end], self._unknown_id)
            if piece != self._unknown_id or ids[-1:] != [piece]:
                ids.append(piece)
            end = starts[end]
        return ids[::-1]

    def origin(self, unit: str, scores: Sequence[float], origins: Sequence[int], n_more: int) -> int | None:
        """Through which of some neighbouring positions the best path runs that ends `n_more` characters after the last.

        `scores` and `origins` are those of as many neighbouring positions as the longest piece has characters, and
        `unit` is what is repeated from the first of them on; the last is at a multiple of its length. Returns one of
        `origins`, or None where that is not found soon.

        While all sums stay between two powers of two, they are multiples of the same unit in the last place, and adding
        a piece's score adds the same rounded number to each (unless it is half-way between two multiples). So if the
        differences of the last scores come back, they do so for ever, and the walk skips as many periods as stay below
        the next power of two.
        """
        best, sources = list(scores), list(origins)
        turns = [self._pieces_at_end(unit, phase) for phase in range(len(unit))]
        steps = {score for turn in turns for score in turn.values()}
        if max(steps) >= 0:
            return None
        reach = -min(steps) * (len(best) + len(unit))
        n_done, ulp = 0, 0.0
        seen: dict[tuple[float, ...], tuple[int, float]] = {}
        for _ in range(MAX_STEPS):
            if n_done >= n_more:
                return sources[-1]
            n_done += 1
            candidates = [(best[-length] + score, length) for length, score in turns[n_done % len(unit)].items()]
            score, length = max(candidates)
            best, sources = [*best[1:], score], [*sources[1:], sources[-length]]
            if math.ulp(score) != ulp:
                ulp, seen = math.ulp(score), {}
            if any(math.ulp(before) != ulp for before in best) or any(
                math.fmod(step, ulp) == -ulp / 2 for step in steps
            ):
                continue
            state = (n_done % len(unit), *(before - score for before in best), *sources)
            n_then, score_then = seen.setdefault(state, (n_done, score))
            if n_then < n_done:
                room = math.ldexp(ulp, 53) + score - reach
                n_periods = max(0, min((n_more - n_done) // (n_done - n_then), int(room / (score_then - score)) - 1))
                best = [before + n_periods * (score - score_then) for before in best]
                n_done, seen = n_done + n_periods * (n_done - n_then), {}
        return None

    def _pieces_at_end(self, unit: str, phase: int) -> dict[int, float]:
        """Length and score of the pieces that end after `phase` characters of a unit, in a long run of units."""
        text = unit * (self._longest // len(unit) + 2) + unit[:phase]
        scores = {length: self._score(text[-length:]) for length in range(1, self._longest + 1)}
        return {length: score for length, score in scores.items() if score is not None}

    def _score(self, piece: str) -> float | None:
        return self._scores.get(piece, self._unknown if len(piece) == 1 else None)
