from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset, DatasetDict
from mteb._create_dataloaders import create_dataloader
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer

from mexma_runtime import Encoder

PAIRS = (
    ("The ferry leaves at noon.", "Le ferry part à midi.", 1.0),
    ("Bake the bread for forty minutes.", "Faites cuire le pain quarante minutes.", 3.5),
    ("The court has ruled.", "La cour a statué.", 4.0),
    ("Interest rates rose again.", "Les taux d'intérêt ont encore augmenté.", 5.0),
    ("The cat sleeps on the sofa.", "Le chat dort sur le canapé.", 2.0),
    ("My password does not work.", "Mon mot de passe ne fonctionne pas.", 0.0),
)
ENGLISH = [english for english, _, _ in PAIRS]
FRENCH = [french for _, french, _ in PAIRS]
SCORES = [score for _, _, score in PAIRS]


def about(name: str, **of_type: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        dataset={"path": "none", "revision": "none"},
        description="Sentences of this test.",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn", "fra-Latn"],
        **of_type,
    )


class Mining(AbsTaskBitextMining):  # type: ignore[misc]
    metadata = about("Mining", type="BitextMining", main_score="f1")


class Likeness(AbsTaskSTS):  # type: ignore[misc]
    metadata = about("Likeness", type="STS", main_score="cosine_spearman")


def with_data(task: Any, **columns: Any) -> Any:
    """`task`, on data that it has no need to fetch."""
    task.dataset = DatasetDict(test=Dataset.from_dict(columns))
    task.data_loaded = True
    return task


def scores(model: SentenceTransformer, task: Any, cache: mteb.ResultCache | None = None) -> Any:
    (result,) = mteb.evaluate(model, task, cache=cache, co2_tracker=False).task_results
    (found,) = result.scores["test"]
    return found


@pytest.fixture(scope="module")
def model(bundle: str) -> SentenceTransformer:
    return SentenceTransformer(bundle, device="cpu", trust_remote_code=True)


def test_bitext_mining(model: Any, encoder: Encoder) -> None:
    nearest = encoder.similarity(encoder.encode(ENGLISH), encoder.encode(FRENCH)).argmax(axis=1)
    accuracy = sum(int(row == found) for row, found in enumerate(nearest)) / len(PAIRS)
    found = scores(model, with_data(Mining(), sentence1=ENGLISH, sentence2=FRENCH))
    assert found["accuracy"] == pytest.approx(accuracy)
    assert 0 < accuracy < 1


def test_sts(model: Any, encoder: Encoder) -> None:
    alike = encoder.similarity_pairwise(encoder.encode(ENGLISH), encoder.encode(FRENCH))
    found = scores(model, with_data(Likeness(), sentence1=ENGLISH, sentence2=FRENCH, score=SCORES))
    assert found["cosine_pearson"] == pytest.approx(pearsonr(alike, SCORES).statistic, abs=1e-6)
    assert found["cosine_spearman"] == pytest.approx(spearmanr(alike, SCORES).statistic, abs=1e-6)
    assert found["pearson"] == pytest.approx(found["cosine_pearson"], abs=1e-6)


def test_vectors_are_the_encoders(model: Any, expected: Any, same: Callable[..., None]) -> None:
    wrapped = mteb.models.SentenceTransformerEncoderWrapper(model)
    for prompt_type, vectors in ((None, expected.plain), ("query", expected.query), ("document", expected.document)):
        found = wrapped.encode(
            create_dataloader(Dataset.from_dict({"text": expected.texts}), task_metadata=Likeness.metadata),
            task_metadata=Likeness.metadata,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type and mteb.types.PromptType(prompt_type),
        )
        same(found, vectors)


def test_results_are_kept_by_the_name_that_a_model_is_given(bundle: str, tmp_path: Path) -> None:
    model = SentenceTransformer(bundle, device="cpu", trust_remote_code=True)
    task, cache = with_data(Mining(), sentence1=ENGLISH, sentence2=FRENCH), mteb.ResultCache(tmp_path)
    scores(model, task, cache)
    model.model_card_data.model_name = "ours/minilm-fp32"
    scores(model, task, cache)
    kept = {path.relative_to(tmp_path / "results").parts[0] for path in tmp_path.rglob("Mining.json")}
    assert kept == {"no_model_name__available", "ours__minilm-fp32"}
