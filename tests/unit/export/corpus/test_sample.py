from __future__ import annotations

import collections
import re
import unicodedata

from mexma_export.corpus.sample import load_sample

LARGE = {"ar", "de", "en", "es", "fr", "hi", "ja", "pt", "ru", "zh"}
SAMPLE = load_sample()


def test_holds_what_it_promises() -> None:
    per_language = collections.Counter(line.lang for line in SAMPLE)
    scripts = {unicodedata.name(c).split()[0].split("-")[0] for line in SAMPLE for c in line.text if c.isalpha()}
    assert len(per_language) == 40
    assert all(count >= (20 if lang in LARGE else 8) for lang, count in per_language.items())
    assert len(scripts - {"KATAKANA"}) == 17  # Unicode counts the two kana apart


def test_is_short_and_long() -> None:
    lengths = [(line.lang, len(line.text.split())) for line in SAMPLE]
    assert sum(n <= 4 for _, n in lengths) > 80
    assert len({lang for lang, n in lengths if 80 <= n <= 150}) >= 8


def test_every_line_is_clean_and_said_once() -> None:
    assert len({line.text for line in SAMPLE}) == len(SAMPLE)
    for line in SAMPLE:
        assert re.fullmatch("[a-z]{2}", line.lang)
        assert line.text == " ".join(line.text.split())
        assert line.text.isprintable() or "\u200c" in line.text  # Persian needs the zero-width non-joiner
