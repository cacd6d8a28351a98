"""The tokenizer of a bundle gives the ids that transformers gives, whatever the files beside tokenizer.json say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from mexma_export.checkpoint.config import Family, ModelConfig
from mexma_export.checkpoint.tokenizer import BY_MODEL_TYPE, library_errors, read_tokenizer
from mexma_runtime.errors import FileError

TEXTS = [
    *(
        "The ferry leaves at NOON.",
        "two  spaces",
        "tab\tand\nnew line",
        " leading",
        "trailing ",
        "\u3000wide\u3000space",
    ),
    *(
        "no\u00a0break",
        "zero\u200bwidth",
        "\ufb01ne \uff26\uff35\uff2c\uff2c ① ㍿",
        "e\u0301 é ÉCOLE",
        "<mask> and <s> </s>",
        "a <mask>b",
    ),
    *("[MASK] and [CLS] [SEP]", "a [MASK]b", "<pad> x", "[PAD] x", "", " ", "  ", "\n", "今天天气很好。", "ไทยภาษา"),
    *(
        "line\u2028sep",
        "x" * 300,
        "\u2581underline \u2581 x",
        "<unk>",
        "a\u0000b",
        "İstanbul ß ẞ",
        "- -- ---",
        "<extra> x",
    ),
    *("<s>NOTUSED", "don't", "bell\x07", "ferryman xferry"),
]
CONFIG = ModelConfig(
    family=Family.BERT,
    n_layers=1,
    hidden_size=16,
    n_heads=2,
    ffn_size=32,
    vocab_size=31000,
    n_positions=514,
    n_token_types=2,
    padding_id=1,
    layer_norm_epsilon=1e-5,
)
MODEL_TYPES = {"minilm": "bert", "unigram": "xlm-roberta", "bpe": "roberta"}

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer.json of each kind, each in a folder of its own, and nothing beside it."""
    made = {name: tmp_path_factory.mktemp(name) for name in MODEL_TYPES}
    shutil.copyfile(minilm_folder / "tokenizer.json", made["minilm"] / "tokenizer.json")
    shutil.copyfile(tiny_checkpoint / "tokenizer.json", made["unigram"] / "tokenizer.json")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS * 3, trainer)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    bpe.save(str(made["bpe"] / "tokenizer.json"))
    return made


def ids_of(content: bytes) -> list[list[int]]:
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [tokenizer.encode(text).ids for text in TEXTS]


def check(folder: Path, kind: str, settings: dict[str, Any] | None, **files: Any) -> list[str]:
    """Equal ids, or problems, which are returned."""
    model_type = files.pop("model_type", MODEL_TYPES[kind])
    overrides = files.pop("overrides", {})
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    if settings is not None:
        files["tokenizer_config"] = settings
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    read = read_tokenizer(folder / "tokenizer.json", CONFIG, model_type=model_type, overrides=overrides)
    if read.problems:
        return read.problems
    theirs = AutoTokenizer.from_pretrained(folder, **overrides)
    expected = [theirs(text).input_ids for text in TEXTS]
    ours = ids_of(read.json)
    wrong = [(text, a, b) for text, a, b in zip(TEXTS, ours, expected, strict=True) if a != b]
    assert not wrong, wrong[:3]
    if read.json == (folder / "tokenizer.json").read_bytes():
        assert read.warnings == []
    return []


CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    *(f"{n}{f}" for n in (*BY_MODEL_TYPE.values(), "DistilBertTokenizer") for f in ("", "Fast")),
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_class_over_every_kind(folders: dict[str, Path], tmp_path: Path, kind: str, name: str | None) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    problems = check(folder, kind, {"tokenizer_class": name} if name else {})
    if name is None or name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        assert problems == []
    elif problems:
        assert "takes a model of kind" in problems[0] or "added token" in problems[0] or "model." in problems[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"},
        {"cls_token": "[MASK]"},
        {"sep_token": {"__type": "AddedToken", "content": "[PAD]", "lstrip": False}},
        {"mask_token": "<extra>"},
        {"additional_special_tokens": ["<extra>"]},
        {"additional_special_tokens": ["ferry"]},
        {"extra_special_tokens": {"image_token": "ferry"}},
        {"image_token": "ferry"},
        {"added_tokens_decoder": {}},
        {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}},
    ],
    ids=str,
)
def test_berts_settings(folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(folders["minilm"], tmp_path / "minilm"))
    problems = check(folder, "minilm", settings)
    assert bool(problems) == ("added_tokens_decoder" in settings)


EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
FERRY = {"content": "ferry", "single_word": True, "lstrip": True}
TYPED_FERRY = FERRY | {"__type": "AddedToken"}
TOKENS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({EXTRA: ["<extra>"], ADDITIONAL: ["ferry"]}, {}, {}),
    ({EXTRA: [], ADDITIONAL: ["ferry"]}, {}, {}),
    ({EXTRA: {"image_token": "<extra>"}, ADDITIONAL: ["ferry"]}, {}, {}),
    ({EXTRA: ["<extra>"]}, {ADDITIONAL: ["ferry"]}, {}),
    ({EXTRA: None}, {ADDITIONAL: ["ferry"]}, {}),
    ({EXTRA: ["<extra>"]}, {EXTRA: ["ferry"]}, {}),
    ({EXTRA: ["<extra>"]}, {EXTRA: [FERRY]}, {}),
    ({EXTRA: ["<extra>"]}, {EXTRA: {"image_token": "ferry"}}, {}),
    ({EXTRA: [TYPED_FERRY]}, {}, {}),
    ({EXTRA: [TYPED_FERRY | {"normalized": True}]}, {}, {}),
    ({ADDITIONAL: ["<extra>"]}, {EXTRA: ["ferry"]}, {}),
    ({ADDITIONAL: ["<extra>"]}, {ADDITIONAL: ["ferry"]}, {}),
    ({ADDITIONAL: None}, {}, {}),
    ({}, {ADDITIONAL: ["ferry"]}, {}),
    ({}, {ADDITIONAL: ["ferry"]}, {ADDITIONAL: ["<extra>"]}),
    ({EXTRA: ["ferry"]}, {}, {EXTRA: ["<extra>"]}),
    ({}, {"mask_token": "x"}, {"mask_token": "ferry"}),
    ({}, {"mask_token": "ferry"}, {"mask_token": None}),
    ({"mask_token": "<extra>", "image_token": "xferry", "bos_token": "ferry"}, {}, {}),
    ({"mask_token": None, "pad_token": None}, {}, {}),
    ({"image_token": FERRY}, {}, {}),
    ({"image_token": TYPED_FERRY}, {}, {}),
    ({}, {"image_token": FERRY, "mask_token": FERRY}, {}),
    ({}, {}, {"image_token": "ferry"}),
    *(({f"{name}_token": "<extra>"}, {}, {}) for name in ("cls", "sep", "bos", "eos", "pad")),
]
"""Of tokenizer_config.json, special_tokens_map.json and processor_kwargs."""


@pytest.mark.parametrize(("settings", "special", "overrides"), TOKENS, ids=str)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("minilm", "BertTokenizer"),
        ("bpe", "RobertaTokenizer"),
        ("unigram", "CamembertTokenizer"),
        ("unigram", "PreTrainedTokenizerFast"),
    ],
)
def test_tokens_of_three_files(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    name: str,
    settings: dict[str, Any],
    special: dict[str, Any],
    overrides: dict[str, Any],
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    files = {"special_tokens_map": special} if special else {}
    assert check(folder, kind, settings | {"tokenizer_class": name}, overrides=overrides, **files) == []


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map", "sentence_bert_config"])
@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("minilm", ("cls", "sep", "unk")),
        ("bpe", ("cls", "sep", "unk")),
        ("unigram", ("bos", "eos", "unk")),
    ],
)
def test_a_token_that_a_class_needs_may_not_be_null(
    folders: dict[str, Path], tmp_path: Path, kind: str, needed: tuple[str, ...], where: str
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    null = {f"{name}_token": None for name in needed}
    files = {where: null} if where != "sentence_bert_config" else {"overrides": null}
    problems = check(folder, kind, None, **files)
    assert [problem.split(" null: expected")[0] for problem in sorted(problems)] == sorted(
        f"{where}.json: {name}_token" for name in needed
    )
    general = {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert check(folder, kind, null | general) == []


MODELS: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    ("minilm", {"unk_token": "ferry"}, {}, "unk_token 'ferry': expected '[UNK]'"),
    ("minilm", {}, {"unk_token": "ferry"}, "unk_token '[UNK]': expected 'ferry'"),
    ("minilm", {"unk_token": "ferry"}, {"unk_token": "ferry"}, None),
    ("minilm", {"max_input_chars_per_word": 50}, {}, "max_input_chars_per_word 50: expected 100"),
    ("unigram", {"unk_id": 2}, {}, "unk_id 2: expected 3"),
    ("unigram", {"unk_id": None}, {}, "unk_id None: expected 3"),
    ("unigram", {"unk_id": 2}, {"tokenizer_class": "CamembertTokenizer"}, "unk_id 2: expected 3"),
    (
        "unigram",
        {"unk_id": 2},
        {"tokenizer_class": "CamembertTokenizer", "unk_token": "</s>"},
        None,
    ),
    ("unigram", {}, {"tokenizer_class": "CamembertTokenizer", "unk_token": "nope"}, "unk_id 3: expected 0"),
    ("bpe", {"unk_token": "<unk>", "fuse_unk": True}, {}, None),
    ("bpe", {"unk_token": "<unk>", "lacks": "\u0143"}, {}, "unk_token '<unk>': expected None"),
    ("bpe", {"lacks": "\u0143"}, {}, None),
    ("bpe", {"continuing_subword_prefix": "", "end_of_word_suffix": "", "dropout": 0.0}, {}, None),
    ("bpe", {"end_of_word_suffix": "</w>"}, {}, "end_of_word_suffix '</w>': expected None"),
    ("bpe", {"dropout": 0.5}, {"tokenizer_class": "PreTrainedTokenizerFast"}, "dropout 0.5: expected null"),
]


@pytest.mark.parametrize(("kind", "model", "settings", "problem"), MODELS, ids=str)
def test_models_that_a_class_makes_otherwise_are_refused(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    model: dict[str, Any],
    settings: dict[str, Any],
    problem: str | None,
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"] |= model
    if lacks := content["model"].pop("lacks", None):
        del content["model"]["vocab"][lacks]
    path.write_text(json.dumps(content), encoding="utf-8")
    problems = check(folder, kind, settings)
    if problem is None:
        assert problems == []
    else:
        assert problems[0].startswith(f"tokenizer.json: model.{problem}")


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_a_padding_token_of_tokenizer_json_is_special(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(folders["minilm"], tmp_path / "minilm"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_token="ferry")
    tokenizer.save(str(folder / "tokenizer.json"))
    assert check(folder, "minilm", {"tokenizer_class": name}) == []


def test_a_panic_of_the_library_is_a_problem(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bpe"], tmp_path / "bpe"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["continuing_subword_prefix"] = "##"
    path.write_text(json.dumps(content), encoding="utf-8")
    (problem,) = check(folder, "bpe", {})
    assert problem.startswith("tokenizer.json: the tokenizers library cannot read it: ")


def test_what_the_library_refuses_while_it_is_rebuilt_is_a_problem(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["minilm"], tmp_path / "minilm"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] = {}
    path.write_text(json.dumps(content), encoding="utf-8")
    (problem,) = check(folder, "minilm", {})
    assert problem.startswith("tokenizer.json: ")
    assert "[UNK]" in problem


def test_an_interruption_is_none_of_the_librarys_errors() -> None:
    problems: list[str] = []
    with pytest.raises(KeyboardInterrupt), library_errors(problems, "tokenizer.json"):
        raise KeyboardInterrupt
    assert problems == []


def test_a_token_around_texts_that_has_no_embedding_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["minilm"], tmp_path / "minilm"))
    (folder / "tokenizer_config.json").write_text('{"sep_token": "<extra>"}', encoding="utf-8")
    path = folder / "tokenizer.json"
    read = read_tokenizer(path, replace(CONFIG, vocab_size=30522), model_type="bert", overrides={})
    assert read.problems == ["tokenizer.json: no token '<extra>', which goes around every text"]


def test_what_stands_in_place_of_a_setting_is_heeded(folders: dict[str, Path]) -> None:
    path = folders["minilm"] / "tokenizer.json"
    read = [
        read_tokenizer(path, CONFIG, model_type="bert", overrides=overrides)
        for overrides in ({}, {"do_lower_case": True}, {"do_lower_case": False})
    ]
    assert read[0].json == read[1].json == path.read_bytes()
    assert ids_of(read[0].json) != ids_of(read[2].json)


NORMALIZERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "as it is": lambda own: own,
    "lower case": lambda own: normalizers.Sequence([own, normalizers.Lowercase()]),
    "squeezed": lambda own: normalizers.Sequence([own, normalizers.Replace(" {2,}", " ")]),
    "nfkc": lambda _: normalizers.NFKC(),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("pre_tokenizer", ["split", "bare"])
@pytest.mark.parametrize("name", [None, "XLMRobertaTokenizer", "PreTrainedTokenizerFast", "CamembertTokenizer"])
def test_pipelines_of_sentencepiece_tokenizers(
    folders: dict[str, Path], tmp_path: Path, name: str | None, pre_tokenizer: str, normalizer: str
) -> None:
    folder = Path(shutil.copytree(folders["unigram"], tmp_path / "unigram"))
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = NORMALIZERS[normalizer](tokenizer.normalizer or normalizers.NFC())
    metaspace = pre_tokenizers.Metaspace()
    tokenizer.pre_tokenizer = (
        metaspace if pre_tokenizer == "bare" else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    )
    tokenizer.save(str(path))
    assert check(folder, "unigram", {"tokenizer_class": name} if name else {}) == []


@pytest.mark.parametrize("settings", [{"add_prefix_space": True}, {"add_prefix_space": False}, {}], ids=str)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_space_in_front(folders: dict[str, Path], tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    assert check(Path(shutil.copytree(folders[kind], tmp_path / kind)), kind, settings) == []


def test_a_null_of_sentencepiece_is_no_space_in_front(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["unigram"], tmp_path / "unigram"))
    assert check(folder, "unigram", {"add_prefix_space": None}) == []


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_files_that_older_versions_wrote(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    mask = "[MASK]" if kind == "minilm" else "<mask>"
    assert check(folder, kind, None, special_tokens_map={"mask_token": {"content": mask, "lstrip": True}}) == []
    assert check(folder, kind, {}, special_tokens_map={"mask_token": mask}, added_tokens={mask: 4}) == []
    (problem,) = check(folder, kind, {}, added_tokens={"<new>": 600})
    assert "added_tokens.json: token '<new>'" in problem


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_what_transformers_saves_is_taken(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    source = Path(shutil.copytree(folders[kind], tmp_path / "source"))
    check(source, kind, {})
    theirs: Any = AutoTokenizer.from_pretrained(source)
    theirs.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings.get("tokenizer_class"), transformers.__version__
    assert check(tmp_path / "saved", kind, None) == []


def test_a_class_that_nobody_knows_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["unigram"], tmp_path / "unigram"))
    (problem,) = check(folder, "unigram", {"tokenizer_class": "T5TokenizerFast"})
    assert problem.startswith("tokenizer_config.json: tokenizer_class T5Tokenizer: expected one of ")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    read = read_tokenizer(tmp_path / "tokenizer.json", CONFIG, model_type="bert", overrides={})
    (problem,) = read.problems
    assert problem.startswith("tokenizer.json: it is a pointer of Git LFS")


def test_a_file_that_the_system_refuses_is_named() -> None:
    with pytest.raises(FileError, match=r"^/proc/self/mem: cannot be read: Input/output error: the device"):
        read_tokenizer(Path("/proc/self/mem"), CONFIG, model_type="bert", overrides={})
