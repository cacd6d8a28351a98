"""The first tokens of an over-long text, without tokenizing all of it and without changing one of them.

`T(x)` is the list of ids of the text `x`, special tokens not included. The text is cut at hard cuts (splitrules.py),
where `T(a + b) = T(a) + T(b)`, and tokenized piece by piece until there are enough ids. Pieces that are long themselves
are shrunk where that changes no id (`_shrunk`), and left where their first ids follow from their beginning (`_agreed`,
Unigram only). Any other long piece is tokenized as it is: right before fast.

So memory is bounded by a small multiple of the step, plus two copies of the text. But tokenizers takes 60 to 280 bytes
for each character of a long piece (thousands of characters without a hard cut)
 - of a Unigram model, if many unknown characters are followed by known ones: the unknown ones are one token, and the
   rounding of the sum of their scores can break a tie between two ways to split the known ones;
 - of a Unigram model, if two ways to split all of it have the same score: then the last character can decide the first
   token (runs that repeat up to eight characters are solved, see `_origin`);
 - full of combining marks: normalising can move the last one to the front;
 - of white space and combining marks in turn, if the normaliser is Precompiled, which may have a rule for the two;
 - of another model (BPE), of a Unigram model with byte fallback, or a tokenizer for which there are no `SplitRules`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

from tokenizers import Encoding, Tokenizer

from mexma_runtime.text.split_rules import STEADY, SplitRules, normalized, words
from mexma_runtime.text.viterbi import Viterbi


class TextCutter:
    """Finds the first ids of texts that are too long to be tokenized whole. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, rules: SplitRules, *, step: int) -> None:
        """`step`: characters that are tokenized at a time where the text allows it."""
        self._tokenizer, self._rules, self._step = tokenizer, rules, step
        self._is_inner = lru_cache(maxsize=1 << 16)(self._stands_for_itself)

    def first_ids(self, text: str, n_wanted: int) -> list[int]:
        """The first `n_wanted` ids of `text` without special tokens, or all of them where there are fewer."""
        ids: list[int] = []
        start = 0
        while start < len(text) and len(ids) < n_wanted:
            n_missing = n_wanted - len(ids)
            end = self._near_cut(text, start)
            if end is None:
                agreed = self._agreed(text, start, len(text), n_missing)
                if agreed is not None:
                    return ids + agreed
                end = next(self._hard_cuts(text, start + 2 * self._step, len(text)), len(text))
            piece = self._shrunk(text[start:end])
            agreed = self._agreed(piece, 0, len(piece), n_missing) if len(piece) > 2 * self._step else None
            ids += self._encode(piece) if agreed is None else agreed
            start = end
        return ids[:n_wanted]

    @cached_property
    def _pieces(self) -> tuple[int, frozenset[str]]:
        """Characters in the longest piece of the vocabulary; all characters that are in pieces and added tokens."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        known = itertools.chain(itertools.chain.from_iterable(vocabulary), *self._rules.contents)
        return max(map(len, vocabulary)), frozenset(known)

    @cached_property
    def _viterbi(self) -> Viterbi:
        return Viterbi(self._tokenizer)

    def _encode(self, text: str) -> list[int]:
        return encode_batch(self._tokenizer, [text], add_special_tokens=False)[0].ids

    def _near_cut(self, text: str, start: int) -> int | None:
        """The first hard cut after a step, else the last before; None where there is none within two steps."""
        middle, stop = start + self._step, start + 2 * self._step
        if stop >= len(text):
            return len(text)
        cut = next(self._hard_cuts(text, middle, stop), None)
        return cut or max(self._hard_cuts(text, start + 1, middle), default=None)

    def _hard_cuts(self, text: str, start: int, stop: int) -> Iterator[int]:
        for match in self._rules.cuts.finditer(text, start):
            cut = match.start()
            if cut >= stop:
                return
            if match.group() not in self._rules.spaces:
                is_cut = not self._has_added_token(text[max(cut - self._rules.reach, 0) : cut + self._rules.reach])
            elif self._rules.is_strict:
                is_cut = bool(normalized(self._tokenizer, text[cut - 1])[-1:].strip())
            else:
                is_cut = True
            if is_cut:
                yield cut

    def _has_added_token(self, text: str) -> bool:
        return any(content in text for content in self._rules.contents)

    def _shrunk(self, piece: str) -> str:
        """A shorter text of the same ids, for a piece between two hard cuts.

        - Of a run of white space, two characters at the beginning and the last: the outer ones keep their neighbours,
          and words end at the inner one. Where Replace turns two or more spaces into one, there still are two.
        - Of a run of characters that the normaliser deletes, the same: what is left still separates what it separated.
          Deleted marks are no starters, so they do not keep others from being reordered.
        - WordPiece: if so many characters of a run survive normalising that the word is too long to be known, the rest
          makes no difference, but for the end of the run, as far as an added token could reach into it.
        - Unigram: unknown characters at the end, see `_short_unknown`.
        """
        if self._rules.squeezed is not None:
            piece = self._rules.squeezed.sub(r"\1\2", piece)
        if self._rules.deleted is not None:
            piece = self._rules.deleted.sub(r"\1\2", piece)
        if self._rules.long_word is not None:
            piece = self._rules.long_word.sub(self._short_word, piece)
        if self._rules.inner is not None and len(piece) > 2 * self._step:
            piece = self._short_unknown(piece, self._rules.inner)
        return piece

    def _short_word(self, match: re.Match[str]) -> str:
        run, max_chars = match.group(), self._rules.max_word_chars
        head = run[: 4 * (max_chars + 1) + self._rules.reach]
        short = head + run[-self._rules.reach :]
        if len(short) >= len(run) or self._has_added_token(run) or self._has_added_token(short):
            return run
        split = {char: words(self._tokenizer, f"a{char}a") for char in set(run)}
        if any(len(pieces) != 1 for pieces in split.values()) or sum(split[c] != ["aa"] for c in head) <= max_chars:
            return run
        return short

    def _short_unknown(self, piece: str, inner: re.Pattern[str]) -> str:
        """`piece` with fewer of the unknown characters that end its last word.

        A character that is in no piece of the vocabulary is a token of its own in every segmentation, and neighbouring
        ones become one token. So what stands before them is split as if the word ended there, and as they do end the
        word, how many there are makes no difference. Eight are left, as the first few may compose with what is before.
        """
        body, known = piece.rstrip(self._rules.spaces), self._pieces[1]
        unknown = "".join(
            re.escape(char)
            for char in sorted(set(body) - known)
            if self._is_inner(char) and normalized(self._tokenizer, char) == char
        )
        run = re.search(rf"(?<![{unknown}])(?:(?=[{unknown}]){inner.pattern})++\Z", body) if unknown else None
        if run is not None:
            n_before = run.start()
        elif body and body[-1] not in known and self._repeats(body[-1]):
            n_before = len(body.rstrip(body[-1]))
        else:
            return piece
        return body[: n_before + 8] + piece[len(body) :]

    def _agreed(self, text: str, start: int, stop: int, n_wanted: int) -> list[int] | None:
        """The first `n_wanted` ids of `text[start:]`, if they can be proven by looking at `text[start:stop]` alone.

        Unigram fills a table from left to right, so what it says of `text[start:cut]` does not depend on what follows.
        If the best segmentation of the whole text has a boundary at `cut`, it starts like that of `text[start:cut]`;
        and of as many neighbouring cuts as the longest piece has characters, one is such a boundary. So if, for all
        these cuts, `T(text[start:cut])` starts with the same `n_wanted` ids, the whole text does. There has to be one
        id more, as unknown characters at the end become one token with those that follow.

        This needs characters that become one each, whatever stands around them, and no added token near them.
        """
        if self._rules.inner is None:
            return None
        stop = min(stop, start + 8 * self._step)
        size = max(self._step, 2 * (self._pieces[0] + 2 * self._rules.reach))
        while start + size < stop:
            for window in self._windows(text, start, start + size, self._rules.inner):
                heads = [self._encode(text[start : window[0]])]
                if len(heads[0]) <= n_wanted:
                    break
                heads += [self._encode(text[start:cut]) for cut in window[1:]]
                starts = [head[:n_wanted] for head in heads if len(head) > n_wanted]
                if len(starts) == len(heads):
                    if all(ids == starts[0] for ids in starts):
                        return starts[0]
                    origin = self._origin(text, start, window, heads[-1])
                    if origin is not None:
                        return starts[origin]
            size *= 2
        return None

    def _origin(self, text: str, start: int, window: range, head: list[int]) -> int | None:
        """Which cut of `window` is a boundary of the whole text's best segmentation, before a run that ends a word.

        `head` is `T(text[start : window[-1]])`. A run repeats up to eight characters: "aaaa...", "-=-=...".
        """
        first, last = window[0], window[-1]
        for length in range(1, 9):
            unit = text[last - length : last]
            whole_units = re.compile(f"(?:{re.escape(unit)})*+").match(text, last)
            end = whole_units.end() if whole_units else last
            while end < len(text) and text[end] == text[end - length]:
                end += 1
            cut = self._rules.cuts.match(text, end)
            ends_word = end == len(text) or (cut is not None and cut.group() in self._rules.spaces)
            if ends_word and text[first : last - length] == text[first + length : last]:
                break
        else:
            return None
        head_text, run = text[start:last], unit * (self._rules.reach // length + 2)
        before = normalized(self._tokenizer, head_text)
        if self._has_added_token("\n".join([head_text, before, run, normalized(self._tokenizer, run)])):
            return None
        word = self._tokenizer.pre_tokenizer.pre_tokenize_str(before)[-1][0]
        scores, starts = self._viterbi.best_scores(word)
        ids = self._viterbi.ids(word, starts)
        if head[-len(ids) :] != ids:  # this tokenizers breaks ties in another way
            return None
        unit = normalized(self._tokenizer, unit)
        return self._viterbi.origin(unit, scores[-len(window) :], range(len(window)), end - last)

    def _windows(self, text: str, start: int, stop: int, inner: re.Pattern[str]) -> Iterator[range]:
        """Neighbouring cuts of the kind that `_agreed` needs, at most a step before `stop`."""
        longest, reach = self._pieces[0], self._rules.reach
        size = longest + 2 * reach
        found = re.compile(f"{inner.pattern}{{{size}}}").finditer(text, max(start, stop - self._step - size), stop)
        for match in list(found)[:-3:-1]:
            zone = match.group()
            as_is_and_normalized = f"{zone}\n{normalized(self._tokenizer, zone)}"
            if all(map(self._is_inner, set(zone))) and not self._has_added_token(as_is_and_normalized):
                yield range(match.start() + reach, match.start() + reach + longest)
        # Or one character over and over, even a combining mark: between steady ones, nothing is reordered with it.
        char = text[stop - 1]
        run_start = start + len(text[start:stop].rstrip(char))
        run = re.compile(re.escape(char) + "*+").match(text, stop)
        run_end = run.end() if run else stop
        neighbours = text[max(run_start - 1, start) : run_start] + text[run_end : run_end + 1]
        if (
            stop - run_start >= size + 8
            and re.fullmatch(f"[{STEADY}{self._rules.spaces}]*", neighbours)
            and not any(char in content for content in self._rules.contents)
            and self._repeats(char)
        ):
            yield range(stop - reach - longest, stop - reach)

    def _stands_for_itself(self, char: str) -> bool:
        """Whether `char` always becomes one character within a word."""
        around = f"\u4e00{char}\u4e00"
        becomes = normalized(self._tokenizer, around)
        inner = self._rules.inner
        return (
            inner is not None
            and len(becomes) == 3
            and all(inner.fullmatch(text, 1, 2) for text in (around, becomes))
            and len(words(self._tokenizer, around)) == 1
        )

    def _repeats(self, char: str) -> bool:
        """Whether a run of `char` is part of a word and normalises to itself."""
        run = char * 8
        return normalized(self._tokenizer, run) == run and len(words(self._tokenizer, f"a{run}a")) == 1


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoding]:
    """`Tokenizer.encode_batch_fast`, or what there was before tokenizers 0.20."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encodings: list[Encoding] = encode(texts, add_special_tokens=add_special_tokens)
    return encodings
