"""Folders of text files, one sentence a line, whose names say the language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.errors import UsageError

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True, kw_only=True)
class LanguageFile:
    """A text file of one language."""

    path: Path
    language: str
    """`eng` for `eng.txt`, `ara` for `tatoeba.ara-eng.ara`."""
    pair: tuple[str, str] | None
    """The languages (source, target) of `NAME.source-target.language`; None for `language.txt`."""


def language_files(folder: Path) -> list[LanguageFile]:
    """The text files of `folder`, by name: `LANGUAGE.txt`, or `NAME.SOURCE-TARGET.LANGUAGE` with one of the two.

    Hidden files, Markdown, READMEs, licences and folders are passed over. UsageError where another file has no such
    name or is none, both kinds are there, or nothing is.
    """
    paths = [path for path in sorted(folder.iterdir()) if not path.is_dir() and not _is_about(path)]
    files = [_language_file(path) for path in paths]
    if missing := [path for path in paths if not path.is_file()]:
        raise UsageError(f"{missing[0]}: expected a text file, got a link to nothing, or what is no file")
    if not files:
        raise UsageError(f"{folder}: no text files: expected LANGUAGE.txt or NAME.SOURCE-TARGET.LANGUAGE")
    if len({file.pair is None for file in files}) > 1:
        raise UsageError(f"{folder}: both LANGUAGE.txt and NAME.SOURCE-TARGET.LANGUAGE files: keep them apart")
    return files


def _is_about(path: Path) -> bool:
    return path.name.startswith((".", "README", "LICENSE", "LICENCE")) or path.suffix.lower() == ".md"


def _language_file(path: Path) -> LanguageFile:
    if path.suffix == TEXT_SUFFIX:
        return LanguageFile(path=path, language=path.stem, pair=None)
    language = path.suffix.removeprefix(".")
    both = path.stem.rpartition(".")[2]
    if language and both.startswith(f"{language}-"):
        return LanguageFile(path=path, language=language, pair=(language, both.removeprefix(f"{language}-")))
    if language and both.endswith(f"-{language}"):
        return LanguageFile(path=path, language=language, pair=(both.removesuffix(f"-{language}"), language))
    raise UsageError(f"{path}: its name says no language: expected LANGUAGE.txt or NAME.SOURCE-TARGET.LANGUAGE")
