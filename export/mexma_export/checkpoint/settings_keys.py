"""One table of the keys that sentence-transformers 3 to 6 and transformers 4 and 5 read of a checkpoint's files.

What becomes of each: it is HEEDED by the reader of its file, it changes no vector (NO_EFFECT), or a Check says which
values are taken, heeded or without effect, and others are refused by name. null is taken as a key that is not there, as
the libraries do, but for NOT_NULL. A key that the table lacks gets a warning. Read in the sources of
sentence-transformers 3.0, 3.4, 4.1, 5.1 to 5.6, 6.0 and 6.2, and of transformers 4.40, 4.57, 5.0, 5.23 and 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from mexma_runtime.bundle.strict_json import Check
from mexma_runtime.types import Similarity, is_unicode

HEEDED: Final = "heeded"
NO_EFFECT: Final = "no effect"

Rule: TypeAlias = str | Check

HUB_OPTIONS = frozenset("trust_remote_code token revision cache_dir subfolder local_files_only".split())
"""Where to load from: sentence-transformers overwrites them with its caller's."""
OWN_CODE = "code of the checkpoint's own may compute anything"
NOT_NULL = frozenset({"hidden_act", "add_bos_token", "add_eos_token"})
"""Keys whose null is not the same as no key; it is held against their Check."""
SPECIAL_TOKENS = tuple(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
"""In the order in which transformers adds them."""
CUSTOM_TOKEN = "*_token"
"""Row of a table for keys such as image_token, which name more tokens."""
TOKEN_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""Of an added token."""


def _keys(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def _only(*values: Any, because: str = "") -> Check:
    words = " or ".join(map(repr, values)) or "null"
    return Check(expected=f"{words}{': ' if because else ''}{because}", holds=values.__contains__)


def _none_but(allowed: frozenset[str], because: str) -> Check:
    """An object of no other keys than those `allowed`."""
    words = f"no keys but {', '.join(sorted(allowed))}: {because}"
    return Check(expected=words, holds=lambda value: isinstance(value, dict) and value.keys() <= allowed)


def _keeps_the_model(options: Any) -> bool:
    is_known = isinstance(options, dict) and options.keys() <= MODEL_OPTIONS
    return is_known and options.get("use_safetensors") is not False  # else pytorch_model.bin is what is loaded


def _changes_no_text(processing: Any) -> bool:
    return isinstance(processing, dict) and not processing.get("text") and not processing.get("common")


def is_text(value: Any) -> bool:
    """Whether a value is a str without halves of surrogate pairs, which no tokenizer takes."""
    return isinstance(value, str) and is_unicode(value)


def _is_token(value: Any, *, needs_type: bool = True) -> bool:
    """A token as its text, or as an object with its flags, which is typed except in special_tokens_map.json."""
    if not isinstance(value, dict):
        return is_text(value) and value != ""
    flags = [flag for key, flag in value.items() if key not in ("__type", "content")]
    is_typed = value.get("__type") == "AddedToken" or not needs_type
    is_known = value.keys() <= {"__type", *TOKEN_FLAGS} and all(isinstance(flag, bool) for flag in flags)
    return is_typed and is_known and is_text(value.get("content")) and value["content"] != ""


def _are_tokens(value: Any, *, needs_type: bool = True, may_be_named: bool = False) -> bool:
    if isinstance(value, dict):
        return may_be_named and not value.keys() & set(SPECIAL_TOKENS) and _are_tokens(list(value.values()))
    return isinstance(value, list) and all(_is_token(token, needs_type=needs_type) for token in value)


def _is_custom_token(value: Any) -> bool:
    """transformers takes no note of an object without __type."""
    is_other_object = isinstance(value, dict) and value.get("__type") != "AddedToken"
    return is_other_object or isinstance(value, bool) or _is_token(value)


def _is_decoder(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isdecimal() and isinstance(token, dict) and "__type" not in token and _is_token(token, needs_type=False)
        for key, token in value.items()
    )


def _tokens(*, needs_type: bool) -> dict[str, Rule]:
    """The rows of a file that names tokens; whether an object `needs_type` to be one."""
    one = 'a text or an object with "__type": "AddedToken"' if needs_type else "a text or an object"
    token = Check(expected=f"a token: {one}", holds=partial(_is_token, needs_type=needs_type))
    tokens = partial(_are_tokens, needs_type=needs_type)
    return {
        **dict.fromkeys(SPECIAL_TOKENS, token),
        CUSTOM_TOKEN: Check(expected=token.expected, holds=_is_custom_token) if needs_type else token,
        "additional_special_tokens": Check(expected=f"a list of tokens, each {one}", holds=tokens),
        "extra_special_tokens": Check(
            expected=f"a list of tokens, each {one}, or an object of more tokens by name",
            holds=partial(tokens, may_be_named=True),
        ),
    }


def _is_forward_of_text(modalities: Any) -> bool:
    return isinstance(modalities, dict) and modalities.get("text") == {
        "method": "forward",
        "method_output_name": "last_hidden_state",
    }


CONFIG: dict[str, Rule] = {
    **_keys(
        HEEDED,
        "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size type_vocab_size "
        "max_position_embeddings layer_norm_eps pad_token_id tokenizer_class",
    ),
    "hidden_act": _only("gelu", "gelu_python", because="only the exact (erf) form is written"),
    # The field left transformers in version 5, with the schemes that it named; a file that has it means it.
    "position_embedding_type": _only("absolute"),
    **_keys(_only(False, because="only encoders are written"), "is_decoder is_causal add_cross_attention"),
    **_keys(
        _only({}, because="only absolute positions are written"),
        "rope_theta rope_scaling rope_parameters rotary_dim rotary_kwargs",
    ),
    "chunk_size_feed_forward": _only(0, 1),
    "pruned_heads": _only({}, because="all heads are written"),
    "quantization_config": _only(because="weights that are quantized already are not written"),
    "auto_map": _only({}, because=OWN_CODE),
    "model_name": _only(because="transformers may choose another tokenizer by it"),
    "transformers_weights": _only("model.safetensors"),
    **_keys(_only(because="layers of one kind are written"), "per_layer_config fusion_config"),
    "processor_class": _only(),
    **_keys(
        NO_EFFECT,
        "_name_or_path name_or_path architectures transformers_version dtype torch_dtype attn_implementation "
        "_attn_implementation attention_probs_dropout_prob hidden_dropout_prob classifier_dropout initializer_range "
        "initializer_factor bos_token_id eos_token_id sep_token_id decoder_start_token_id use_cache "
        "gradient_checkpointing output_past id2label label2id num_labels problem_type finetuning_task "
        "task_specific_params tie_word_embeddings tie_encoder_decoder return_dict output_attentions "
        "output_hidden_states is_encoder_decoder torchscript use_bfloat16 tf_legacy_loss embedding_size "
        "use_bidirectional_attention sliding_window attention_chunk_size layer_types cross_attention_hidden_size "
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
        "directionality max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
        "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
        "suppress_tokens begin_suppress_tokens prefix",
    ),
}

TOKENIZER_CONFIG: dict[str, Rule] = {
    **_keys(HEEDED, "tokenizer_class model_max_length max_len"),
    **_keys(
        Check(expected="true or false", holds=lambda value: isinstance(value, bool)),
        "do_lower_case strip_accents tokenize_chinese_chars add_prefix_space",
    ),
    **_tokens(needs_type=True),
    "added_tokens_decoder": Check(
        expected="an object of ids and tokens, each an object of its flags", holds=_is_decoder
    ),
    "model_specific_special_tokens": _only({}, because="name them in extra_special_tokens"),
    "truncation_side": _only("right", because="the end of a text is cut off"),
    "padding_side": _only("right"),
    "split_special_tokens": _only(False),
    "add_special_tokens": _only(True, because="every text has its special tokens"),
    "model_input_names": Check(
        expected="input_ids and attention_mask among them",
        holds=lambda names: isinstance(names, list) and {"input_ids", "attention_mask"} <= set(map(str, names)),
    ),
    "fast_tokenizer_files": _only(because="tokenizer.json is the file that is read"),
    "tokenizer_file": _only(because="tokenizer.json is the file that is read"),
    "processor_class": _only(),
    "auto_map": _only({}, because=OWN_CODE),
    "init_inputs": _only([]),
    **_keys(
        NO_EFFECT,
        "name_or_path vocab_file special_tokens_map_file is_local use_fast from_slow legacy backend errors "
        "trim_offsets clean_up_tokenization_spaces never_split do_basic_tokenize sp_model_kwargs fix_mistral_regex "
        "pad_token_type_id pad_to_multiple_of max_length stride truncation_strategy add_bos_token add_eos_token "
        "chat_template verbose do_clean_text wordpieces_prefix",
    ),
    **dict.fromkeys(HUB_OPTIONS, NO_EFFECT),
}

TOKENIZER_OPTIONS: dict[str, Rule] = {
    **TOKENIZER_CONFIG,
    **_keys(
        Check(expected="no such key: the special tokens around a text are tokenizer.json's", holds=lambda _: False),
        "add_bos_token add_eos_token",
    ),
    **_keys(_only(because="name the class in tokenizer_config.json"), "tokenizer_class tokenizer_type"),
    **_keys(_only(because="tokenizer.json is the file that is read"), "gguf_file mistral_format"),
}
"""Of tokenizer_args and processor_kwargs, which stand in place of tokenizer_config.json's."""

SPECIAL_TOKENS_MAP: dict[str, Rule] = {
    **TOKENIZER_OPTIONS,
    **_tokens(needs_type=False),
    **_keys(_only(because="say it in tokenizer_config.json"), "model_max_length max_len"),
}
"""Of special_tokens_map.json, whose keys transformers puts in place of tokenizer_config.json's, whatever they are."""

MODEL_OPTIONS = HUB_OPTIONS | frozenset(
    "add_pooling_layer attn_implementation device_map dtype low_cpu_mem_usage torch_dtype use_safetensors".split()
)
"""Of the model, without effect on vectors."""

TRANSFORMER: dict[str, Rule] = {
    **_keys(HEEDED, "max_seq_length do_lower_case tokenizer_args processor_kwargs"),
    **_keys(
        Check(expected=f"no keys but {', '.join(sorted(MODEL_OPTIONS))}, the last not false", holds=_keeps_the_model),
        "model_args model_kwargs",
    ),
    **_keys(_none_but(HUB_OPTIONS, "change config.json for the others"), "config_args config_kwargs"),
    "processing_kwargs": Check(
        expected="nothing for text: say max_seq_length, and leave special tokens on", holds=_changes_no_text
    ),
    "tokenizer_name_or_path": _only(because="name another tokenizer by --tokenizer"),
    "transformer_task": _only("feature-extraction"),
    "modality_config": Check(expected="text forward to last_hidden_state", holds=_is_forward_of_text),
    "module_output_name": _only("token_embeddings"),
    **_keys(_only(because="queries and documents are encoded alike"), "query_length document_length query_expansion"),
    **_keys(NO_EFFECT, "unpad_inputs backend cache_dir"),
}
"""Of sentence_bert_config.json and its other names."""

MODULE: dict[str, Rule] = {**_keys(HEEDED, "path type name"), **_keys(NO_EFFECT, "idx kwargs")}
"""Of an entry of modules.json."""

SENTENCE_TRANSFORMERS: dict[str, Rule] = {
    **_keys(HEEDED, "prompts default_prompt_name"),
    "truncate_dim": _only(because="cut vectors are not written: remove the key, and cut the vectors after encoding"),
    "model_type": _only("SentenceTransformer"),
    "similarity_fn_name": Check(expected=f"one of {', '.join(Similarity)}", holds=list(Similarity).__contains__),
    **_keys(NO_EFFECT, "__version__ requirements"),
}
"""Of config_sentence_transformers.json."""

POOLING: dict[str, Rule] = {
    **_keys(
        HEEDED,
        "pooling_mode pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens "
        "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken",
    ),
    "include_prompt": _only(True, because="pooling without the prompt's tokens is not written"),
    **_keys(NO_EFFECT, "word_embedding_dimension embedding_dimension"),
}

NORMALIZE: dict[str, Rule] = _keys(_only("sentence_embedding"), "module_input_name module_output_name")

PROCESSOR: dict[str, Rule] = {"processor_class": _only(because="a text goes through the tokenizer alone")}
"""Of processor_config.json and the like, whose other keys are of images and sound."""


def judge_keys(
    where: str, content: Mapping[str, Any], table: Mapping[str, Rule], *, prefix: str = ""
) -> tuple[list[str], list[str]]:
    """What is wrong with the keys of a file, and what of it is unknown; both name the file, `where`, and the key.

    `prefix`: where `content` stands in the file, such as `tokenizer_args.`.
    """
    problems, warnings = [], []
    for key, value in content.items():
        rule = table.get(key, table.get(CUSTOM_TOKEN) if key.endswith("_token") else None)
        name = f"{where}: {prefix}{key if key.isprintable() else ascii(key)}"
        if rule is None:
            warnings.append(f"{name}: unknown to sentence-transformers 3 to 6 and transformers 4 and 5: not heeded")
        elif isinstance(rule, Check) and (value is not None or key in NOT_NULL) and not rule.holds(value):
            problems.append(f"{name} {_shown(value)}: expected {rule.expected}")
    return problems, warnings


def _shown(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
