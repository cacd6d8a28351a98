from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mexma_export.checkpoint.config import Family, ModelConfig
from mexma_export.checkpoint.sentence import SentenceSettings, read_settings
from mexma_runtime.errors import CheckpointError
from mexma_runtime.types import Pooling, Similarity

CONFIG = ModelConfig(
    family=Family.XLM_ROBERTA,
    n_layers=2,
    hidden_size=16,
    n_heads=2,
    ffn_size=32,
    vocab_size=100,
    n_positions=514,
    n_token_types=1,
    padding_id=1,
    layer_norm_epsilon=1e-5,
)
OLD = dict.fromkeys(("Transformer", "Pooling", "Normalize", "Dense"), "sentence_transformers.models.")
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.",
    "Normalize": "sentence_transformers.base.modules.normalize.",
}
"""What sentence-transformers 2 to 5 and 6 put before a module's name."""


def modules(*names: str, stem: dict[str, str] = OLD) -> list[dict[str, Any]]:
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(names[1:], start=1))]
    return [
        {"idx": i, "name": str(i), "path": path, "type": stem[name] + name}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def read(folder: Path, *, model_id: str = "folder", pooling: Pooling | None = None) -> SentenceSettings:
    settings, problems = read_settings(folder, CONFIG, model_id=model_id, asked_pooling=pooling)
    assert problems == []
    assert settings is not None
    return settings


def problems_of(folder: Path, pooling: Pooling | None = None) -> list[str]:
    settings, problems = read_settings(folder, CONFIG, model_id="folder", asked_pooling=pooling)
    assert settings is None
    return problems


CLS = modules("Transformer", "Pooling")
CLS_FILES = {
    "modules.json": CLS,
    "1_Pooling/config.json": {"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True},
}


@pytest.mark.parametrize("stem", [OLD, NEW])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
        ({"pooling_mode_cls_token": 1, "pooling_mode_mean_tokens": 0, "pooling_mode_max_tokens": None}, "cls"),
    ],
)
def test_pooling_is_read_from_old_and_new_files(
    tmp_path: Path, stem: dict[str, str], config: Any, expected: str
) -> None:
    files = {"modules.json": modules("Transformer", "Pooling", stem=stem), "1_Pooling/config.json": config}
    settings = read(write(tmp_path, files))
    assert settings.pooling_mode == expected
    assert settings.pooling.source == "1_Pooling/config.json"
    assert (settings.normalize.value, settings.normalize.source) == ("false", "modules.json")
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "cls + mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls + mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "pooling_mode_max_tokens"),
        ({"pooling_mode": 5}, "5"),
        ({"pooling_mode": {"cls": 1}}, "{'cls': 1}"),
        ({"pooling_mode_cls_token": 0, "pooling_mode_mean_tokens": False}, "not said"),
        ({}, "not said"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, config: Any, named: str) -> None:
    write(tmp_path, CLS_FILES | {"1_Pooling/config.json": config})
    assert problems_of(tmp_path) == [f"1_Pooling/config.json: pooling {named}: only cls or mean is written"]


def test_pooling_without_the_prompt_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}})
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(
        "1_Pooling/config.json: include_prompt False: expected True: pooling without the prompt's"
    )


def test_a_mean_that_is_left_out_is_another_in_each_version(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"1_Pooling/config.json": {"pooling_mode_cls_token": True}})
    assert "no pooling_mode_mean_tokens, which is true before sentence-transformers 5.4" in problems_of(tmp_path)[0]


def test_mexmas_pooling_is_known_by_name_and_the_difference_to_sentence_transformers_is_told(tmp_path: Path) -> None:
    settings = read(tmp_path, model_id="facebook/MEXMA")
    assert settings.pooling_mode is Pooling.CLS
    assert settings.pooling.source == "the model card of facebook/MEXMA"
    assert (settings.normalize.value, settings.is_normalized) == ("false", False)
    (warning,) = settings.warnings
    assert "sentence-transformers mean-pools it; this bundle pools cls (the model card" in warning


def test_an_unknown_pooling_is_never_guessed(tmp_path: Path) -> None:
    expected = "no modules.json with a pooling, and it is never guessed: say --pooling cls or --pooling mean"
    assert problems_of(tmp_path) == [expected]


def test_pooling_can_be_asked_for(tmp_path: Path) -> None:
    settings = read(tmp_path, pooling=Pooling.CLS)
    assert (settings.pooling_mode, settings.pooling.source) == (Pooling.CLS, "asked for (--pooling)")
    assert len(settings.warnings) == 1
    assert read(tmp_path, pooling=Pooling.MEAN).warnings == ()
    assert read(write(tmp_path, CLS_FILES), pooling=Pooling.MEAN).pooling_mode is Pooling.MEAN


def test_normalize_comes_from_modules_json(tmp_path: Path) -> None:
    settings = read(write(tmp_path, CLS_FILES | {"modules.json": modules("Transformer", "Pooling", "Normalize")}))
    assert (settings.is_normalized, settings.normalize.source) == (True, "modules.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            modules("Transformer", "Pooling", "Dense"),
            "Transformer + Pooling + sentence_transformers.models.Dense: only",
        ),
        (
            modules("Transformer", "Pooling", "Dense", "Normalize"),
            "+ sentence_transformers.models.Dense + Normalize: only",
        ),
        (modules("Transformer"), "modules.json: Transformer: only"),
        ([], "modules.json: : only"),
        ({"0": "Transformer"}, "expected a list of objects with name, type and path"),
        (["Transformer", "Pooling"], "expected a list of objects with name, type and path"),
        (7, "expected a list of objects with name, type and path"),
        ([{"type": "Transformer"}], "expected a list of objects with name, type and path"),
        ([{**module, "name": "0"} for module in modules("Transformer", "Pooling")], "two modules of one name"),
        (
            [module | {"type": "custom_st.Pooling"} if module["idx"] else module for module in CLS],
            "custom_st.Pooling: only",
        ),
        (
            [module | {"type": module["type"].rsplit(".")[-1]} for module in CLS],
            "modules.json: Transformer + Pooling: only",
        ),
        *(
            ([CLS[0], CLS[1] | {"path": path}], f"path {path!r}: expected a folder below the checkpoint's")
            for path in ("", ".", "../1_Pooling", "1_Pooling/..", "/1_Pooling", "1_\0")
        ),
        (
            [modules("Transformer")[0] | {"path": "0_Transformer"}, modules("Transformer", "Pooling")[1]],
            "the Transformer lies in '0_Transformer'; expected the folder itself",
        ),
    ],
)
def test_other_modules_are_refused_whatever_is_asked(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, CLS_FILES | {"modules.json": content})
    for pooling in (None, Pooling.CLS):
        (problem,) = problems_of(tmp_path, pooling)
        assert problem.startswith("modules.json: ")
        assert message in problem


def test_the_token_limit_comes_from_the_narrowest_file_that_sentence_transformers_reads(tmp_path: Path) -> None:
    def limit() -> tuple[int, str]:
        settings = read(tmp_path)
        return settings.max_tokens, settings.max_tokens_source

    write(tmp_path, CLS_FILES)
    assert limit() == (512, "config.json")  # 514 rows, of which the first two serve no token
    for no_limit in (514, 1e30, int(1e30)):
        write(tmp_path, {"tokenizer_config.json": {"model_max_length": no_limit}})
        assert limit() == (512, "config.json")
    write(tmp_path, {"tokenizer_config.json": {"model_max_length": 384}})
    assert limit() == (384, "tokenizer_config.json")
    write(tmp_path, {"sentence_roberta_config.json": {"max_seq_length": 128}})
    assert limit() == (128, "sentence_roberta_config.json")
    write(tmp_path, {"sentence_bert_config.json": {"max_seq_length": None}})
    assert limit() == (384, "tokenizer_config.json")
    write(tmp_path, {"sentence_bert_config.json": {"max_seq_length": 256}})
    assert limit() == (256, "sentence_bert_config.json")
    (tmp_path / "modules.json").unlink()  # sentence-transformers then reads none of its own files
    settings = read(tmp_path, pooling=Pooling.MEAN)
    assert (settings.max_tokens, settings.max_tokens_source) == (384, "tokenizer_config.json")


@pytest.mark.parametrize("limit", [2, 0, -1, "256", 256.0, [256], True])
def test_a_limit_that_the_position_table_does_not_serve_is_refused(tmp_path: Path, limit: Any) -> None:
    write(tmp_path, CLS_FILES | {"sentence_bert_config.json": {"max_seq_length": limit}})
    expected = f"sentence_bert_config.json: a limit of {limit!r} tokens; the position table serves 3 to 512"
    assert problems_of(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_seq_length": 514}, "max_seq_length"),
        ({"tokenizer_args": {"model_max_length": 514}}, "model_max_length"),
    ],
)
def test_a_limit_above_the_position_tables_is_cut_and_told(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    read_settings = read(write(tmp_path, CLS_FILES | {"sentence_bert_config.json": settings}))
    assert (read_settings.max_tokens, read_settings.max_tokens_source) == (512, "config.json")
    (warning,) = read_settings.warnings
    assert warning.startswith(f"sentence_bert_config.json: {key} 514: the position table serves 512")


def test_the_transformer_may_lie_in_a_dot(tmp_path: Path) -> None:
    assert read(write(tmp_path, CLS_FILES | {"modules.json": [CLS[0] | {"path": "."}, CLS[1]]})).pooling_mode == "cls"


def test_the_tokenizers_limit_may_be_wrong_as_well(tmp_path: Path) -> None:
    for limit in ("512", -1, 0.5):
        write(tmp_path, CLS_FILES | {"tokenizer_config.json": {"model_max_length": limit}})
        assert problems_of(tmp_path) == [
            f"tokenizer_config.json: a limit of {limit!r} tokens; the position table serves 3 to 512"
        ]


def test_lower_case_is_sentence_transformers_setting_alone(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"sentence_bert_config.json": {"do_lower_case": True}})
    assert read(tmp_path).lower_case
    (tmp_path / "modules.json").unlink()
    assert not read(tmp_path, pooling=Pooling.CLS).lower_case
    write(tmp_path, CLS_FILES | {"sentence_bert_config.json": {"do_lower_case": False}})
    assert not read(tmp_path).lower_case


def test_prompts(tmp_path: Path) -> None:
    assert read(write(tmp_path, CLS_FILES)).default_prompt == ""
    prompts = {"query": "query: ", "passage": "passage: "}
    write(tmp_path, {"config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "query"}})
    settings = read(tmp_path)
    assert (settings.prompts, settings.default_prompt_name, settings.default_prompt) == (prompts, "query", "query: ")
    for name in ("query", "document"):
        write(
            tmp_path, {"config_sentence_transformers.json": {"prompts": {"query": None}, "default_prompt_name": name}}
        )
        settings = read(tmp_path)
        assert (settings.prompts, settings.default_prompt) == ({"query": ""}, "")
    write(tmp_path, {"config_sentence_transformers.json": {"prompts": prompts}})
    assert (read(tmp_path).default_prompt_name, read(tmp_path).default_prompt) == (None, "")


@pytest.mark.parametrize(
    "content",
    [
        {"prompts": {"query": 1}},
        {"prompts": {"query": "\ud800"}},
        {"prompts": {"\ud800": "query: "}},
        {"prompts": ["query: "]},
        {"prompts": "query: "},
        {"prompts": {"query": ""}, "default_prompt_name": "passage"},
        {"prompts": {"query": ""}, "default_prompt_name": ["query"]},
    ],
)
def test_prompts_that_are_no_prompts_are_refused(tmp_path: Path, content: Any) -> None:
    write(tmp_path, CLS_FILES | {"config_sentence_transformers.json": content})
    assert problems_of(tmp_path) == [
        "config_sentence_transformers.json: prompts: expected texts by name, the default among them"
    ]


@pytest.mark.parametrize(
    "name",
    "sentence_bert_config.json tokenizer_config.json 1_Pooling/config.json config_sentence_transformers.json".split(),
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, got list"),
        ("null", "expected a JSON object or list, got null"),
        ("\udcff", "not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    write(tmp_path, CLS_FILES)
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=f"{name}: {message}"):
        read(tmp_path)


def test_problems_are_told_together(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "modules.json": modules("Transformer", "Pooling", "Dense"),
            "sentence_bert_config.json": {"max_seq_length": 2},
            "config_sentence_transformers.json": {"default_prompt_name": "passage"},
        },
    )
    assert [problem.split(":")[0] for problem in problems_of(tmp_path)] == [
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ]


def test_settings_that_are_not_heeded_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        CLS_FILES
        | {
            "sentence_bert_config.json": {"max_seq_length": 128, "processing_kwargs": {"text": {"max_length": 16}}},
            "config_sentence_transformers.json": {"truncate_dim": 8},
            "modules.json": modules("Transformer", "Pooling", "Normalize"),
            "2_Normalize/config.json": {"module_input_name": "token_embeddings", "features": 5},
            "adapter_config.json": {"peft_type": "LORA"},
            "preprocessor_config.json": {"processor_class": "CLIPProcessor", "image_size": 224},
        },
    )
    assert [problem.split(": expected")[0].split(": an")[0] for problem in problems_of(folder)] == [
        "adapter_config.json",
        "preprocessor_config.json: processor_class 'CLIPProcessor'",
        "2_Normalize/config.json: module_input_name 'token_embeddings'",
        "sentence_bert_config.json: processing_kwargs {'text': {'max_length': 16}}",
        "config_sentence_transformers.json: truncate_dim 8",
    ]


@pytest.mark.parametrize("name", ["tokenizer_args", "processor_kwargs"])
def test_options_of_the_tokenizer_stand_in_place_of_its_own_settings(tmp_path: Path, name: str) -> None:
    write(tmp_path, CLS_FILES | {"tokenizer_config.json": {"model_max_length": 384}})
    write(
        tmp_path, {"sentence_bert_config.json": {name: {"model_max_length": 16, "do_lower_case": False, "token": "x"}}}
    )
    settings = read(tmp_path)
    assert (settings.max_tokens, settings.max_tokens_source) == (16, "sentence_bert_config.json")
    assert settings.tokenizer_options == {"model_max_length": 16, "do_lower_case": False}
    assert settings.warnings == ()
    write(tmp_path, {"sentence_bert_config.json": {"max_seq_length": 128, name: {"model_max_length": 16}}})
    settings = read(tmp_path)
    assert settings.max_tokens == 16
    assert "texts are cut at the former" in settings.warnings[0]
    write(tmp_path, {"sentence_bert_config.json": {name: {"truncation_side": "left"}}})
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"sentence_bert_config.json: {name}.truncation_side 'left': expected 'right'")
    write(tmp_path, {"sentence_bert_config.json": {"tokenizer_args": {"a": 1}, "processor_kwargs": {"a": 2}}})
    assert "two names for one thing" in problems_of(tmp_path)[0]


def test_a_key_that_nobody_knows_is_named(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"sentence_bert_config.json": {"max_seq_length": 128, "new_thing": 1}})
    (warning,) = read(tmp_path).warnings
    assert warning.startswith("sentence_bert_config.json: new_thing: ")


@pytest.mark.parametrize("name", ["dot", "euclidean", "manhattan", "cosine"])
def test_the_similarity_function_is_the_checkpoints(tmp_path: Path, name: str) -> None:
    write(tmp_path, CLS_FILES | {"config_sentence_transformers.json": {"similarity_fn_name": name}})
    found = read(tmp_path).similarity
    assert (found.value, found.source) == (name, "config_sentence_transformers.json")


def test_a_similarity_that_is_not_said_is_the_cosine(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"config_sentence_transformers.json": {"similarity_fn_name": None}})
    assert read(tmp_path).similarity.value == "cosine"


def test_a_similarity_of_more_vectors_than_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CLS_FILES | {"config_sentence_transformers.json": {"similarity_fn_name": "maxsim"}})
    assert problems_of(tmp_path) == [
        f"config_sentence_transformers.json: similarity_fn_name 'maxsim': expected one of {', '.join(Similarity)}"
    ]
