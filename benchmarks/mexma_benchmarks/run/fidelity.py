"""Every subject's vectors against transformers' own model in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import unpack
from mexma_benchmarks.result.result import Fidelity, ModelResult
from mexma_benchmarks.run.heat import Heat
from mexma_benchmarks.run.prepared import Prepared
from mexma_benchmarks.run.process import SubjectError
from mexma_benchmarks.run.subjects import Subject
from mexma_export.corpus.corpus import Corpus, sample_corpus
from mexma_export.parity.breakdown import judge_vectors
from mexma_export.parity.gate import UNCERTIFIED_FP16, pytorch_reference
from mexma_export.parity.invariance import measure_invariance
from mexma_export.quantize.calibration import load_calibration, shipped_corpus
from mexma_runtime.errors import ParityError
from mexma_runtime.types import Vectors


def held_out_corpus(n: int) -> Corpus:
    """At most `n` of the package's sentences, of every language; never one that peers calibrate on."""
    return _every(sample_corpus(), slice(0, None, 2), n, "mexma-runtime sample, every other sentence")


def calibration_texts() -> tuple[str, ...]:
    """What peers that calibrate are given: the other half of the package's sentences."""
    return sample_corpus().texts[1::2]


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """What a subject was calibrated on."""

    name: str
    texts: tuple[str, ...] | None
    """None: a user's own, which a bundle names and does not hold."""

    def described(self, judged: frozenset[str]) -> str:
        """Its name, and how many of the `judged` sentences are part of it."""
        if self.texts is None:
            return f"{self.name}, whose sentences are not known here"
        n_shared = len(judged.intersection(self.texts))
        return f"{self.name}, {n_shared or 'none'} of the sentences judged here among it"


def calibration_of(subject: Subject, prepared: Prepared) -> CalibrationText | None:
    """The text that `subject` was calibrated on; None where it was not."""
    if subject.calibrates:
        return CalibrationText(name="mexma-runtime sample, the other sentences", texts=calibration_texts())
    if subject.role != "engine":
        return None
    manifest = prepared.bundle.manifest
    made = next(engine for engine in manifest.engines if engine.name == subject.options["engine"]).quantization
    if made is None:
        return None
    is_ours = made.calibration_sha256 == load_calibration(prepared.checkpoint).sha256
    return CalibrationText(name=made.calibration, texts=shipped_corpus().texts if is_ours else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """The reference's vectors of a corpus."""

    corpus: Corpus
    """Prompts in front of the texts already."""
    sentences: frozenset[str]
    """Its texts without prompts."""
    lengths: NDArray[np.int64]
    vectors: Vectors
    device: str

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        corpus: Corpus | None,
        n: int,
        model: ModelResult,
        report: Callable[[int, int], None],
    ) -> Judge:
        """Embed at most `n` sentences of `corpus` (None: the package's own) with the reference; `model` says which."""
        corpus = _every(corpus, slice(None), n, corpus.name) if corpus else held_out_corpus(n)
        # By length, so that a subject that batches texts as they come pads little; its speed is not what is judged.
        lengths = prepared.tokenize(prepared.prompted(corpus.texts)).lengths
        order = np.argsort(lengths, kind="stable")
        corpus = replace(
            corpus,
            texts=tuple(corpus.texts[row] for row in order),
            languages=corpus.languages and tuple(corpus.languages[row] for row in order),
        )
        reference = pytorch_reference(prepared.checkpoint, corpus, progress=report)
        model.reference, model.fidelity_corpus = reference.description, f"{corpus.name}, {len(corpus.texts)} sentences"
        return cls(
            corpus=replace(corpus, texts=tuple(prepared.prompted(corpus.texts))),
            sentences=frozenset(corpus.texts),
            lengths=lengths[order],
            vectors=reference.vectors,
            device=prepared.task.device,
        )

    def judge(self, heat: Heat, name: str, model: ModelResult, calibration: CalibrationText | None) -> None:
        """Hold one running subject's vectors against the reference's; what cannot be compared is its row's reason."""

        def embed(texts: Sequence[str]) -> Vectors:
            answer = heat.ask(name, {"do": "vectors", "texts": list(texts)})
            if answer is None:
                raise SubjectError(model.subject(name).reason or "")
            return unpack(answer)

        subject = model.subject(name)
        try:
            vectors = embed(self.corpus.texts)
            found = judge_vectors(vectors, self.vectors, lengths=self.lengths, languages=self.corpus.languages)
            invariance = measure_invariance(embed, self.corpus.texts, self.lengths, vectors).worst
        except SubjectError:
            return
        except ParityError as error:
            subject.reason = f"its vectors cannot be compared: {error}"
            return
        is_half_on_cpu = self.device == "cpu" and subject.options.get("precision") == "fp16"
        subject.fidelity = Fidelity(
            figures=found.overall,
            invariance=invariance,
            by_length=found.by_length,
            by_language=found.by_language,
            uncertified=UNCERTIFIED_FP16 if is_half_on_cpu else None,
            calibration=calibration.described(self.sentences) if calibration else None,
        )


def _every(corpus: Corpus, half: slice, n: int, name: str) -> Corpus:
    texts, languages = corpus.texts[half], corpus.languages and corpus.languages[half]
    step = -(-len(texts) // n)
    return Corpus(name=name, texts=texts[::step], languages=languages and languages[::step])
