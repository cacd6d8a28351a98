"""One table of the keys that sentence-transformers 3 to 6 and transformers 4 and 5 read of a checkpoint's files.

What becomes of each: it is HEEDED by the reader of its file, it changes no vector (NO_EFFECT), or a Check says the
values that do not, and others are refused by name. null is never refused: to the libraries it is a key that is not
there. A key that the table lacks gets a warning. Read in the sources of sentence-transformers 3.0, 3.4, 4.1, 5.1 to
5.6, 6.0 and 6.2, and of transformers 4.40, 4.57, 5.0, 5.23 and 5.24.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from mexma_runtime.bundle.strict_json import Check

HEEDED: Final = "heeded"
NO_EFFECT: Final = "no effect"

Rule: TypeAlias = str | Check

HUB_OPTIONS = frozenset("trust_remote_code token revision cache_dir subfolder local_files_only".split())
"""Where to load from: sentence-transformers overwrites them with its caller's."""
OWN_CODE = "null: code of the checkpoint's own may compute anything"


def _keys(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def _only(*values: Any, because: str = "") -> Check:
    words = " or ".join(map(repr, values)) or "null"
    return Check(expected=f"{words}{': ' if because else ''}{because}", holds=values.__contains__)


def _none_of(names: Iterable[str] | None, allowed: Iterable[str], because: str) -> Check:
    """An object of no other keys than those `allowed`; `names`: the keys of the object that count, None for all."""

    def holds(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        groups = [value] if names is None else [value.get(name) or {} for name in names]
        return all(isinstance(group, dict) and group.keys() <= set(allowed) for group in groups)

    return Check(expected=because, holds=holds)


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
    **_keys(_only(False, because="only encoders are written"), "is_decoder add_cross_attention"),
    **_keys(
        _only({}, because="only absolute positions are written"),
        "rope_theta rope_scaling rope_parameters rotary_dim rotary_kwargs",
    ),
    "chunk_size_feed_forward": _only(0, 1),
    "pruned_heads": _only({}, because="all heads are written"),
    "quantization_config": _only(because="weights that are quantized already are not written"),
    "auto_map": Check(expected=OWN_CODE, holds=lambda _: False),
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
        "output_hidden_states is_encoder_decoder torchscript use_bfloat16 tf_legacy_loss embedding_size is_causal "
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
    **_keys(
        HEEDED,
        "tokenizer_class model_max_length max_len do_lower_case strip_accents tokenize_chinese_chars add_prefix_space "
        "added_tokens_decoder additional_special_tokens extra_special_tokens bos_token eos_token cls_token sep_token "
        "unk_token pad_token mask_token",
    ),
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
    "auto_map": Check(expected=OWN_CODE, holds=lambda _: False),
    **_keys(
        NO_EFFECT,
        "name_or_path special_tokens_map_file is_local use_fast from_slow legacy backend errors trim_offsets "
        "clean_up_tokenization_spaces never_split do_basic_tokenize sp_model_kwargs fix_mistral_regex "
        "pad_token_type_id pad_to_multiple_of max_length stride truncation_strategy add_bos_token add_eos_token "
        "chat_template verbose do_clean_text wordpieces_prefix",
    ),
    **dict.fromkeys(HUB_OPTIONS, NO_EFFECT),
}

TRANSFORMER: dict[str, Rule] = {
    **_keys(HEEDED, "max_seq_length do_lower_case tokenizer_args processor_kwargs"),
    **_keys(
        _none_of(None, {*HUB_OPTIONS, "attn_implementation", "dtype", "torch_dtype"}, "no option that changes vectors"),
        "model_args model_kwargs",
    ),
    **_keys(
        _none_of(None, HUB_OPTIONS, "nothing that overrides config.json: change it there"), "config_args config_kwargs"
    ),
    "processing_kwargs": _none_of(
        ("text", "common"), (), "nothing for text: say max_seq_length, and leave special tokens on"
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
    **_keys(NO_EFFECT, "__version__ similarity_fn_name requirements"),
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
        rule = table.get(key)
        if rule is None:
            warnings.append(
                f"{where}: {prefix}{key}: unknown to sentence-transformers 3 to 6 and transformers 4 and 5: not heeded"
            )
        elif isinstance(rule, Check) and value is not None and not rule.holds(value):
            problems.append(f"{where}: {prefix}{key} {_shown(value)}: expected {rule.expected}")
    return problems, warnings


def _shown(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
