from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.corpus.sample import load_sample
from mexma_export.quantize import calibration as module
from mexma_export.quantize.calibration import (
    BATCH_TOKENS,
    MAX_TOKENS,
    MIN_TEXTS,
    Calibration,
    load_calibration,
    shipped_corpus,
)
from mexma_runtime.errors import UsageError

UNKNOWN = "\U00012000\U00012001 \U00012010\U00012020 " * 3
"""Cuneiform, which no stand-in's tokenizer knows."""


def write(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_the_shipped_text_is_of_many_languages_scripts_and_lengths() -> None:
    corpus = shipped_corpus()
    assert corpus.languages
    letters = {letter for text in corpus.texts for letter in text if letter.isalpha()}
    scripts = {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters}
    lengths = [len(text) for text in corpus.texts]
    assert len(set(corpus.languages)) >= 30
    assert len(scripts) >= 10
    assert min(lengths) < 20
    assert max(lengths) > 400
    assert len(set(corpus.texts)) == len(corpus.texts)


def test_no_text_of_it_judges_engines() -> None:
    assert not set(shipped_corpus().texts) & {line.text for line in load_sample()}


def test_it_is_read_by_the_models_tokenizer(checkpoint: Checkpoint) -> None:
    calibration = load_calibration(checkpoint)
    assert calibration.name == "mexma-runtime calibration text"
    assert 0.9 * MAX_TOKENS < calibration.n_tokens == calibration.ragged.ids.size < 1.1 * MAX_TOKENS
    assert set(calibration.ragged.ids[calibration.ragged.offsets[:-1]]) == {0}


@pytest.fixture(scope="module")
def english_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for English, with a token for every character of any other language."""
    corpus = shipped_corpus()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=sorted({letter for text in corpus.texts for letter in text}),
        show_progress=False,
    )
    tokenizer.train_from_iterator(of_language("en"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    path = tmp_path_factory.mktemp("english") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def of_language(language: str) -> list[str]:
    corpus = shipped_corpus()
    assert corpus.languages
    return [text for text, of in zip(corpus.texts, corpus.languages, strict=True) if of == language]


def test_languages_that_the_tokenizer_breaks_to_pieces_are_left_out_of_the_shipped_text_alone(
    checkpoint: Checkpoint, english_tokenizer: Path, tmp_path: Path
) -> None:
    english = dataclasses.replace(checkpoint, tokenizer=english_tokenizer.read_bytes())
    found = load_calibration(english)
    assert found.n_texts + found.n_left_out == len(shipped_corpus().texts)
    tokenizer = Tokenizer.from_file(str(english_tokenizer))
    tokenizer.enable_truncation(checkpoint.settings.max_tokens)
    used = {tuple(found.ragged[row]) for row in range(found.n_texts)}
    for language, is_used in {"en": True, "fi": False, "de": False, "ru": False, "ko": False}.items():
        texts = of_language(language)
        assert {tuple(tokenizer.encode(text).ids) in used for text in texts} == {is_used}, language
    own = load_calibration(english, write(tmp_path / "mine.tsv", *(f"de\t{text}" for text in of_language("de") * 8)))
    assert own.n_left_out == 0


@pytest.mark.parametrize("max_tokens", [4, 12])
def test_languages_all_of_whose_texts_are_cut(checkpoint: Checkpoint, english_tokenizer: Path, max_tokens: int) -> None:
    """With 4 tokens English is, too, and there is nothing to compare with: all is used."""
    settings = dataclasses.replace(checkpoint.settings, max_tokens=max_tokens)
    english = dataclasses.replace(checkpoint, settings=settings, tokenizer=english_tokenizer.read_bytes())
    with np.errstate(all="raise"):
        found = load_calibration(english)
    assert found.n_texts >= len(of_language("en"))
    assert (found.n_left_out == 0) == (max_tokens == 4)


def test_batches_hold_every_text_once_with_those_of_its_length(calibration: Calibration) -> None:
    batches = list(calibration.batches())
    assert sorted(np.concatenate(batches)) == list(range(calibration.n_texts))
    for rows in batches:
        lengths = calibration.ragged.lengths[rows]
        assert len(set(lengths)) == 1
        assert rows.size == 1 or lengths.sum() <= BATCH_TOKENS


def test_a_users_file_is_known_by_its_name_and_what_is_used_of_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    texts = [text for text in shipped_corpus().texts if len(text) > 60][:100]
    found = load_calibration(checkpoint, write(tmp_path / "mine.txt", *texts, "", UNKNOWN))
    tsv = load_calibration(checkpoint, write(tmp_path / "mine.tsv", *(f"en\t{text}" for text in texts)))
    assert (found.name, found.n_texts, found.n_left_out) == ("mine.txt", 100, 1)
    assert found.sha256 == tsv.sha256 == hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert np.array_equal(found.ragged.ids, tsv.ragged.ids)


def test_the_models_own_prompt_comes_first(checkpoint: Checkpoint, few_texts: Path) -> None:
    settings = dataclasses.replace(checkpoint.settings, prompts={"query": "query: "}, default_prompt_name="query")
    plain = load_calibration(checkpoint, few_texts)
    prompted = load_calibration(dataclasses.replace(checkpoint, settings=settings), few_texts)
    assert prompted.n_texts == plain.n_texts
    assert np.all(prompted.ragged.lengths >= np.minimum(plain.ragged.lengths + 1, checkpoint.settings.max_tokens))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((), "expected two sentences or more, one a line, got 0"),
        (("one line",), "expected two sentences or more, one a line, got 1"),
        (("a few words",) * (MIN_TEXTS - 1), "expected at least 64 texts and 1000 tokens to calibrate on, got 63"),
        (("a",) * MIN_TEXTS, r"expected at least 64 texts and 1000 tokens to calibrate on, got 64 texts and \d+ tok"),
        ((UNKNOWN,) * 300, r"300 of 300 texts have more than 10% tokens that are unknown to the model's tokenizer"),
        (
            ("a few words",) * 250 + (UNKNOWN,) * 251,
            r"251 of 501 texts have .* calibrate on text in languages that the model reads",
        ),
    ],
)
def test_too_little_is_refused(checkpoint: Checkpoint, tmp_path: Path, texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        load_calibration(checkpoint, write(tmp_path / "mine.txt", *texts))
    assert "mine.txt" in str(caught.value)


def test_long_text_is_thinned_evenly(checkpoint: Checkpoint, few_texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_calibration(checkpoint, few_texts)
    monkeypatch.setattr(module, "MAX_TOKENS", whole.n_tokens * 3 // 4)
    thinned = load_calibration(checkpoint, few_texts)
    assert 0.6 * whole.n_tokens < thinned.n_tokens < 0.9 * whole.n_tokens
    assert np.array_equal(thinned.ragged[0], whole.ragged[0])
    assert np.array_equal(thinned.ragged[thinned.n_texts - 1], whole.ragged[whole.n_texts - 1])
    assert thinned.n_left_out == whole.n_left_out
    assert thinned.sha256 != whole.sha256
