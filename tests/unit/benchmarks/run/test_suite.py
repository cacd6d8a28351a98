from __future__ import annotations

import numpy as np
import pytest

from mexma_benchmarks.adapters import protocol
from mexma_benchmarks.adapters.protocol import Ids, Lengths, Model, Task, Vectors
from mexma_benchmarks.run import subjects
from mexma_benchmarks.run.fidelity import CalibrationText, calibration_texts, held_out_corpus
from mexma_benchmarks.run.subjects import Subject, baseline_subjects, flash_subjects, server_subjects
from mexma_benchmarks.run.suite import COPIES, MEMORY_SHARE, OVERHEAD_BYTES, Chosen, group_by_memory
from mexma_benchmarks.run.workload import ragged_job, shape_job, text_job
from mexma_export.corpus.corpus import sample_corpus
from mexma_export.quantize.calibration import shipped_corpus
from mexma_runtime.types import Ragged

TASK = Task(
    checkpoint="",
    tokenizer="",
    pooling="cls",
    is_normalized=False,
    max_tokens=64,
    n_threads=1,
    device="cpu",
    folder="",
    first_text="",
)
GB = 10**9


def chosen(*names: str) -> Chosen:
    return {name: (Subject(name=name, role="peer", adapter="mexma"), TASK) for name in names}


def room_for(*sizes: int) -> int:
    """Free memory that holds subjects of such files and a bit."""
    return int((sum(COPIES * size + OVERHEAD_BYTES for size in sizes) + GB / 10) / MEMORY_SHARE)


@pytest.mark.parametrize(
    ("n_fit", "groups"),
    [
        (9, ["a b c d e"]),
        (5, ["a b c d e"]),
        (3, ["a b c", "a d e"]),
        (2, ["a b", "a c", "a d", "a e"]),
        (1, ["a b", "a c", "a d", "a e"]),  # a pair is the least that can be compared
    ],
)
def test_groups_fit_into_memory_with_the_baseline_in_each(n_fit: int, groups: list[str]) -> None:
    sizes = dict.fromkeys("abcde", 2 * GB)
    found = group_by_memory(chosen(*"abcde"), "a", sizes, room_for(*[2 * GB] * n_fit))

    assert [" ".join(group) for group in found] == groups


def test_small_subjects_share_a_group() -> None:
    sizes = {"a": 2 * GB, "b": GB // 2, "c": 2 * GB, "d": GB // 2, "e": 2 * GB}
    found = group_by_memory(chosen(*"abcde"), "a", sizes, room_for(2 * GB, GB // 2, 2 * GB, GB // 2))

    assert [" ".join(group) for group in found] == ["a b d c", "a e"]


def test_the_baseline_may_be_alone_and_without_it_there_is_nothing_to_measure() -> None:
    assert [list(group) for group in group_by_memory(chosen("a"), "a", {"a": GB}, 0)] == [["a"]]
    assert group_by_memory(chosen("b", "c"), "a", {"b": GB, "c": GB}, 0) == []


def test_no_sentence_that_peers_calibrate_on_is_judged() -> None:
    judged = held_out_corpus(10_000)

    assert not set(judged.texts) & set(calibration_texts())
    assert set(judged.texts) | set(calibration_texts()) == set(sample_corpus().texts)
    assert judged.languages is not None
    assert set(judged.languages) == set(sample_corpus().languages or ())
    assert 40 < len(held_out_corpus(64).texts) <= 64


def test_of_what_calibrated_a_subject_the_judged_sentences_are_counted() -> None:
    judged = frozenset({"a", "b", "c"})

    def said(*texts: str) -> str:
        return CalibrationText(name="text", texts=texts).described(judged)

    assert said("d", "e") == "text, none of the sentences judged here among it"
    assert said("b", "e", "c", "b") == "text, 2 of the sentences judged here among it"
    assert CalibrationText(name="mine.txt", texts=None).described(judged) == (
        "mine.txt, whose sentences are not known here"
    )


def test_no_judged_sentence_is_in_any_calibration_text() -> None:
    judged = frozenset(held_out_corpus(10_000).texts)

    for texts in (calibration_texts(), shipped_corpus().texts):
        assert "none of the sentences" in CalibrationText(name="text", texts=texts).described(judged)


def test_a_shape_is_the_same_ids_every_time() -> None:
    job = shape_job(3, 7, 1000)

    assert (job.workload.n_sentences, job.workload.n_tokens, job.workload.kind) == (3, 21, "ids")
    assert job == shape_job(3, 7, 1000)
    ids = np.array(job.request["ids"])
    assert ids.shape == (3, 7)
    assert 5 <= ids.min() <= ids.max() < 1000


def test_the_ids_of_texts_are_one_request_end_to_end() -> None:
    ragged = Ragged.from_sequences([[0, 5, 2], [0, 5, 6, 7, 2]])
    job = ragged_job(["a", "b c d"], lambda texts: ragged, name="2 texts")

    assert (job.workload.kind, job.workload.n_sentences, job.workload.n_tokens) == ("ids", 2, 8)
    assert (job.workload.batch, job.workload.length) == (None, None)
    assert job.workload.name == "ids of 2 texts, mean 4.0 tokens, 95th percentile 5"

    class Echo(Model):
        def encode_ragged(self, ids: Ids, lengths: Lengths) -> Vectors:
            received.append((ids.tolist(), lengths.tolist()))
            return np.zeros((2, 1), dtype=np.float32)

    received: list[tuple[list[int], list[int]]] = []
    assert protocol._answer(Echo(), dict(job.request))["ms"] >= 0
    assert received == [(ragged.ids.tolist(), [3, 5])]
    assert protocol._answer(Model(), dict(job.request)) == {"not_offered": "it makes no batches of ids"}


def test_texts_are_counted_in_tokens_without_padding() -> None:
    def tokenize(texts: object) -> Ragged:
        return Ragged.from_sequences([[0, 5, 2], [0, 5, 6, 7, 2]])

    workload = text_job(["a", "b c d"], tokenize, name="2 texts").workload

    assert (workload.kind, workload.n_sentences, workload.n_tokens) == ("texts", 2, 8)
    assert (workload.batch, workload.length) == (None, None)
    assert workload.name == "2 texts, mean 4.0 tokens, 95th percentile 5"


def test_baselines_of_a_gpu_are_all_of_pytorchs_ways() -> None:
    names = [subject.name for subject in baseline_subjects("cuda:1")]

    assert names[0] == "PyTorch fp16"
    for way in ("sorted", "compiled", "unpadded", "bf16", "fp32", "packed", "packed, graph"):
        assert any(way in name for name in names)
    assert [subject.name for subject in baseline_subjects("cpu")] == ["PyTorch fp32", "PyTorch fp32, sorted"]


def test_sentence_transformers_with_flash_attention_is_listed_for_gpus_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"sentence_transformers", "flash_attn"}
    monkeypatch.setattr(subjects, "find_spec", lambda name: object() if name in there else None)

    second, third = flash_subjects("cuda")

    assert flash_subjects("cpu") == []
    assert (second.options["attention"], second.unavailable) == ("flash_attention_2", None)
    assert third.unavailable == "not installed: flash_attn_interface"


def test_a_server_takes_texts_only() -> None:
    [server] = server_subjects(["https://host/embed"], "some-model")

    assert server.options == {"url": "https://host/embed", "model": "some-model"}
    assert server.measured == {"texts", "load", "fidelity"}
