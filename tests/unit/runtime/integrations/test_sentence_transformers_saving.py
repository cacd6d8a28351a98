from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_export.bundle.staging import Staging
from mexma_runtime import BundleError, Encoder, UsageError
from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.companions import COMPANIONS, SETTINGS
from mexma_runtime.bundle.manifest import MANIFEST_NAME

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from mexma_runtime.integrations.sentence_transformers import BundleModule

MakeBundle = Callable[..., Path]

TEXTS = ["The ferry leaves at noon.", "Interest rates rose again.", "noon"]


def opened(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, **options)


class OfMyOwn(SentenceTransformer):  # type: ignore[misc]  # its types are skipped
    pass


class TestSaving:
    def test_a_saved_model_is_a_bundle(self, copied: Path, tmp_path: Path, encoder: Encoder) -> None:
        (copied / "local").mkdir()
        model = opened(copied)
        out = tmp_path / "saved"
        model.save_pretrained(str(out))

        assert read_manifest(out) == read_manifest(copied)
        assert not (out / "local").exists()
        Bundle.open(out, verify=True)
        for again in (opened(out), Encoder.load(out)):
            np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
        for name in COMPANIONS:  # requirements among them, which sentence-transformers leaves out
            assert json.loads((out / name).read_text()) == json.loads((copied / name).read_text())
        model.save_pretrained(str(out))  # once more is no other bundle

    def test_into_its_own_folder(self, tiny: Path) -> None:
        before = {path.name: path.read_bytes() for path in tiny.iterdir()}
        opened(tiny).save_pretrained(str(tiny), create_model_card=False)
        assert {path.name: path.read_bytes() for path in tiny.iterdir() if path.name != "modules.json"} == {
            name: content for name, content in before.items() if name != "modules.json"
        }
        opened(tiny)

    @pytest.mark.parametrize("is_own", [True, False])
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"prompts": {"query": "find: "}}, r"prompts .*find: .* and bundle.json has .*the "),
            ({"truncate_dim": 4}, "truncate_dim 4, and bundle.json has None"),
            ({"similarity_fn_name": "dot"}, "similarity_fn_name 'dot', and bundle.json has 'cosine'"),
            ({"processor_kwargs": {"model_max_length": 5}}, "max_seq_length is 5, .* checkpoint's 16: set it back"),
        ],
    )
    def test_what_would_be_lost_is_refused_and_nothing_written(
        self, tiny: Path, tmp_path: Path, is_own: bool, given: dict[str, Any], said: str
    ) -> None:
        before = _contents(tiny)
        out = tiny if is_own else tmp_path / "saved"

        with pytest.raises(UsageError, match=f"{out}: not saved: .*{said}"):
            opened(tiny, **given).save_pretrained(str(out))
        assert _contents(tiny) == before
        assert is_own or not out.exists()

    def test_another_bundle_is_not_overwritten(self, tiny: Path, minilm_bundle: Path) -> None:
        before = _contents(tiny)
        with pytest.raises(BundleError, match="another bundle is there: save into another folder"):
            opened(minilm_bundle).save_pretrained(str(tiny))
        (tiny / MANIFEST_NAME).write_text("{")
        with pytest.raises(BundleError, match="not JSON"):
            opened(minilm_bundle).save_pretrained(str(tiny))
        assert _contents(tiny) == {**before, MANIFEST_NAME: b"{"}

    def test_a_checkpoint_is_not_overwritten(self, tiny: Path, minilm_folder: Path, tmp_path: Path) -> None:
        checkpoint = Path(shutil.copytree(minilm_folder, tmp_path / "checkpoint"))
        before = _contents(checkpoint)
        with pytest.raises(UsageError, match=r"not saved: config.json, .* of another model is there"):
            opened(tiny).save_pretrained(str(checkpoint))
        assert _contents(checkpoint) == before

    def test_files_that_are_missing_or_damaged_there_are_copied(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "saved"
        model = opened(tiny)
        model.save_pretrained(str(out))
        engine, tokenizer = (next(out.glob(f"{kind}.*")) for kind in ("model", "tokenizer"))
        engine.write_bytes(bytes(engine.stat().st_size))
        tokenizer.unlink()

        model.save_pretrained(str(out))
        Bundle.open(out, verify=True)

    def test_a_damaged_bundle_is_not_saved(self, tiny: Path, tmp_path: Path) -> None:
        model = opened(tiny)
        engine = next(tiny.glob("model.*"))
        engine.write_bytes(bytes(engine.stat().st_size))
        for out in (tmp_path / "saved", tiny):
            with pytest.raises(BundleError, match=r"model\..*: expected sha256"):
                model.save_pretrained(str(out))
        assert not (tmp_path / "saved" / SETTINGS).exists()

    def test_an_export_is_not_disturbed(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "saved"
        with (
            Staging(out),
            pytest.raises(BundleError, match="another export or build is writing here: wait for it to end"),
        ):
            opened(tiny).save_pretrained(str(out))
        opened(tiny).save_pretrained(str(out))
        with (
            Staging(out),
            pytest.raises(BundleError, match="another export or build is writing here: wait for it to end"),
        ):
            opened(tiny).save_pretrained(str(out))
        opened(out)

    def test_what_a_killed_one_left_is_in_nobodys_way(self, minilm_bundle: Path, tmp_path: Path) -> None:
        out = tmp_path / "saved"
        opened(minilm_bundle).save_pretrained(str(out), create_model_card=False)
        for name in (*COMPANIONS, MANIFEST_NAME):
            (out / name).unlink()
        engine = next(out.glob("model.*"))
        engine.rename(out / f".{engine.name}.{'0' * 16}.part")

        opened(minilm_bundle).save_pretrained(str(out))
        opened(out)
        (out / MANIFEST_NAME).unlink()
        for name in (*COMPANIONS, "README.md"):
            (out / name).unlink()
        with Staging(out):
            assert not list(out.iterdir())

    def test_other_modules_go_with_it_into_a_folder_of_their_own(self, tiny: Path, tmp_path: Path) -> None:
        model = opened(tiny)
        model.append(Normalize())
        expected = model.encode(["the cat"])
        with pytest.raises(
            UsageError, match=r"the model there has behind its bundle nothing, and this one .*Normalize"
        ):
            model.save_pretrained(str(tiny))

        out = tmp_path / "saved"
        for _ in range(2):
            model.save_pretrained(str(out))
            np.testing.assert_array_equal(opened(out).encode(["the cat"]), expected)
        with pytest.raises(UsageError, match=r"behind its bundle .*Normalize, and this one nothing"):
            opened(tiny).save_pretrained(str(out))
        with pytest.raises(
            UsageError, match=r"modules.json: a model of more than the bundle was saved here .*Normalize"
        ):
            Staging(out)
        np.testing.assert_array_equal(opened(out).encode(["the cat"]), expected)

    def test_a_class_of_ones_own_breaks_no_bundle(self, tiny: Path, minilm_bundle: Path, tmp_path: Path) -> None:
        module = BundleModule(minilm_bundle)
        settings = {**module.model_settings, "prompts": {"query": "find: "}}
        with pytest.raises(BundleError, match="another bundle is there"):
            OfMyOwn(modules=[module], **settings).save_pretrained(str(tiny))
        opened(tiny)

        model = OfMyOwn(modules=[BundleModule(tiny)], **settings)
        with pytest.raises(BundleError, match=r"prompts .*find: "):
            model.save_pretrained(str(tiny))
        opened(tiny)
        model.max_seq_length = 5
        with pytest.raises(UsageError, match="max_seq_length is 5"):
            model.save_pretrained(str(tmp_path / "saved"))

    def test_one_without_companions_is_the_same_bundle(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "saved"
        opened(tiny).save_pretrained(str(out))
        (out / MANIFEST_NAME).write_text(replace(Bundle.open(out).manifest, companions=[]).to_json())
        for name in COMPANIONS:
            (out / name).unlink()
        opened(tiny).save_pretrained(str(out))
        opened(out)

    def test_a_bundle_of_an_older_version_gets_its_companions(self, make_bundle: MakeBundle) -> None:
        older = make_bundle()
        module = BundleModule(older)
        SentenceTransformer(modules=[module], **module.model_settings).save_pretrained(str(older))

        assert Bundle.open(older).manifest.companions == sorted(COMPANIONS)
        np.testing.assert_array_equal(opened(older).encode(["the cat"]), Encoder.load(older).encode(["the cat"]))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
