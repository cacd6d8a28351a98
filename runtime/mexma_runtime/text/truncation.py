"""The first tokens of an over-long text, without tokenizing all of it and without changing one of them.

`T(x)` is the list of ids of the text `x`, special tokens not included. The text is cut at hard cuts (split_rules.py),
where `T(a + b) = T(a) + T(b)`, and tokenized piece by piece until there are enough ids. Of a long piece, runs of white
space are shortened where that changes no id (`_shrunk`), and the first ids are taken where they follow from its
beginning (`_agreed`, Unigram only). Any other piece is tokenized whole, as the reference does, which takes 60 to 280
bytes a character: so up to `max_whole_chars` characters, and InputError beyond. What is tokenized whole are texts of
more than some thousand characters without a hard cut
 - of a Unigram model, if two ways to split all of it have the same score, so that its end can decide its first token
   (one letter over and over), or if many unknown characters are followed by known ones;
 - full of combining marks: normalising can move the last one to the front;
 - of white space and combining marks in turn, if the normaliser is Precompiled, which may have a rule for the two;
 - of another model (WordPiece, BPE), of a Unigram model with byte fallback;
and all texts of a tokenizer for which there are no `SplitRules`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

from tokenizers import Encoding, Tokenizer

from mexma_runtime.errors import InputError
from mexma_runtime.process import NATIVE
from mexma_runtime.text.split_rules import STEADY, SplitRules, normalized, words

STARTER = "\u4e00"
"""A character that no neighbour changes."""
_SPELLED = re.compile(rf"{STARTER}([{STEADY}]+(?: [{STEADY}]+)*){STARTER}")


class TextCutter:
    """Finds the first ids of texts that are too long to be tokenized whole. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, rules: SplitRules, *, step: int, max_whole_chars: int) -> None:
        """`step`: characters that are tokenized at a time where the text allows it; `max_whole_chars`: where not."""
        self._tokenizer, self._rules, self._step, self._max_whole_chars = tokenizer, rules, step, max_whole_chars
        # No cached_property: Python 3.11 computes one under a lock of its own, which a fork may find taken for ever.
        self._longest_piece = lru_cache(partial(longest_piece, tokenizer))
        self._spelled = lru_cache(self._becomes)
        self._of_added_tokens = set("".join(rules.contents))
        self._is_inner = lru_cache(maxsize=1 << 16)(self._stands_for_itself)

    def first_ids(self, text: str, n_wanted: int, *, index: int | None = None) -> list[int]:
        """The first `n_wanted` ids of `text` without special tokens, or all of them where there are fewer.

        Raises InputError, with the text's `index`, where too many characters would have to be tokenized at once.
        """
        ids: list[int] = []
        start, is_spelled_out = 0, False
        while start < len(text) and len(ids) < n_wanted:
            n_missing = n_wanted - len(ids)
            end = self._near_cut(text, start)
            if end is None and not is_spelled_out:
                text, start, is_spelled_out = self._spelled_out(text[start:]), 0, True
                continue
            if end is None:
                agreed = self._agreed(text, start, len(text), n_missing)
                if agreed is not None:
                    return ids + agreed
                end = next(self._hard_cuts(text, start + 2 * self._step, len(text)), len(text))
            piece = self._shrunk(text[start:end])
            agreed = self._agreed(piece, 0, len(piece), n_missing) if len(piece) > 2 * self._step else None
            if agreed is None:
                require_whole(len(piece), self._max_whole_chars, index)
                agreed = self._encode(piece)
            ids += agreed
            start = end
        return ids[:n_wanted]

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

    def _spelled_out(self, text: str) -> str:
        """A text that is normalised to the same, with characters written as what becomes of them.

        So white space in that is found, and how much is tokenized is known: a million of U+FDFA are 18 million letters.
        """
        if self._rules.expanding is None:
            return text
        return self._rules.expanding.sub(lambda match: self._spelled(match.group()), text)

    def _becomes(self, char: str) -> str:
        """What `char` is normalised to, alone in its cluster; itself, where that is changed again or by its neighbours,
        is more than steady characters and single spaces within, or has a part of an added token."""
        becomes = normalized(self._tokenizer, f"{STARTER}{char}{STARTER}")
        found = _SPELLED.fullmatch(becomes)
        is_fixed = found is not None and normalized(self._tokenizer, becomes) == becomes
        return found[1] if found and is_fixed and set(char + found[1]).isdisjoint(self._of_added_tokens) else char

    def _shrunk(self, piece: str) -> str:
        """A shorter text of the same ids, for a piece between two hard cuts.

        - Of a run of white space, two characters at the beginning and the last: the outer ones keep their neighbours,
          and words end at the inner one. Where Replace turns two or more spaces into one, there still are two.
        - Of a run of characters that the normaliser deletes, the same: what is left still separates what it separated.
          Deleted marks are no starters, so they do not keep others from being reordered.
        """
        if self._rules.squeezed is not None:
            piece = self._rules.squeezed.sub(r"\1\2", piece)
        if self._rules.deleted is not None:
            piece = self._rules.deleted.sub(r"\1\2", piece)
        return piece

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
        size = max(self._step, 2 * (self._longest_piece() + 2 * self._rules.reach))
        while start + size < stop:
            for window in self._windows(text, start, start + size, self._rules.inner):
                heads = [self._encode(text[start : window[0]])]
                if len(heads[0]) <= n_wanted:
                    break
                heads += [self._encode(text[start:cut]) for cut in window[1:]]
                starts = [head[:n_wanted] for head in heads if len(head) > n_wanted]
                if len(starts) == len(heads) and all(ids == starts[0] for ids in starts):
                    return starts[0]
            size *= 2
        return None

    def _windows(self, text: str, start: int, stop: int, inner: re.Pattern[str]) -> Iterator[range]:
        """Neighbouring cuts of the kind that `_agreed` needs, at most a step before `stop`."""
        longest, reach = self._longest_piece(), self._rules.reach
        size = longest + 2 * reach
        found = re.compile(f"{inner.pattern}{{{size}}}").finditer(text, max(start, stop - self._step - size), stop)
        for match in list(found)[:-3:-1]:
            zone = match.group()
            as_is_and_normalized = f"{zone}\n{normalized(self._tokenizer, zone)}"
            if all(map(self._is_inner, set(zone))) and not self._has_added_token(as_is_and_normalized):
                yield range(match.start() + reach, match.start() + reach + longest)

    def _stands_for_itself(self, char: str) -> bool:
        """Whether `char` always becomes one character within a word."""
        around = f"{STARTER}{char}{STARTER}"
        becomes = normalized(self._tokenizer, around)
        inner = self._rules.inner
        return (
            inner is not None
            and len(becomes) == 3
            and all(inner.fullmatch(text, 1, 2) for text in (around, becomes))
            and len(words(self._tokenizer, around)) == 1
        )


def longest_piece(tokenizer: Tokenizer) -> int:
    """Characters in the longest piece of the vocabulary."""
    return max(map(len, tokenizer.get_vocab(with_added_tokens=True)))


def require_whole(n_chars: int, most: int, index: int | None) -> None:
    """InputError where a text, or a part of one that cannot be cut, has more characters than are tokenized at once."""
    if n_chars > most:
        raise InputError(
            f"{n_chars:,} characters without a place to cut them would be tokenized at once, and at most {most:,} are, "
            "since each takes up to 280 bytes of memory: put white space between words, cut the text, or raise "
            "max_whole_chars",
            index=index,
        )


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoding]:
    """`Tokenizer.encode_batch_fast`, or what there was before tokenizers 0.20; in some forks one text after another.

    There the pool of threads may be a copy without threads, which is waited for in vain. tokenizers avoids it by itself
    unless the variable is set.
    """
    if NATIVE.is_fork and "TOKENIZERS_PARALLELISM" in os.environ:
        return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encodings: list[Encoding] = encode(texts, add_special_tokens=add_special_tokens)
    return encodings
