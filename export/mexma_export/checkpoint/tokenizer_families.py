"""The tokenizer classes of the families that are written, as transformers 5 makes each of tokenizer.json.

Read in TokenizersBackend.convert_to_native_format and the classes' own `__init__` of version 5.23.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

Arguments = Mapping[str, Any]
"""What transformers calls a class with: see `TokenizerArguments`."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How transformers makes a tokenizer of one class."""

    model: str
    """Its model, in tokenizer.json's words."""
    model_values: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    """unk_token and the file's model -> what it gives the model, whatever the file says."""
    tokens: Mapping[str, str]
    """Special tokens that it has unless a file names others."""
    around: tuple[str, str]
    """Those before and after a text."""
    pipeline: Callable[[Arguments, bytes | None], tuple[Any, Any]]
    """Arguments and the file's charsmap -> normalizer and pre-tokenizer."""
    extra: tuple[str, ...] = ()
    """More special tokens, unless a file names others."""
    is_rebuilt_by_4: bool = False
    """Whether transformers 4 makes the pipeline anew too."""


def charsmap_of(normalizer: Any) -> bytes | None:
    """Of the first Precompiled in a normalizer."""
    if not isinstance(normalizer, dict):
        return None
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    found = (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled")
    charsmap = next(found, None)
    return base64.b64decode(charsmap) if charsmap is not None else None


def _sentencepiece(arguments: Arguments, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    scheme = "always" if arguments.get("add_prefix_space", True) else "never"
    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    normalizer = normalizers.Precompiled(charsmap) if charsmap is not None else None
    return normalizer, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])


def _byte_level(arguments: Arguments, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import pre_tokenizers

    return None, pre_tokenizers.ByteLevel(add_prefix_space=bool(arguments.get("add_prefix_space")))


def _word_piece(arguments: Arguments, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=arguments.get("tokenize_chinese_chars") is not False,
        strip_accents=arguments.get("strip_accents"),
        lowercase=arguments.get("do_lower_case") is not False,
    )
    return normalizer, pre_tokenizers.BertPreTokenizer()


def _camembert_model(unk_token: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    ids = (index for index, (piece, _) in enumerate(model["vocab"]) if piece == unk_token)
    return {"unk_id": next(ids, 0), "byte_fallback": False}


def _roberta_model(unk_token: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    from tokenizers import pre_tokenizers

    has_every_byte = model["vocab"].keys() >= set(pre_tokenizers.ByteLevel.alphabet())  # none is unknown then
    return dict.fromkeys(
        (
            *("dropout", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"),
            *(() if has_every_byte else ("unk_token",)),
        )
    )


def _bert_model(unk_token: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"unk_token": unk_token, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}


_BERT = Family(
    model="WordPiece",
    model_values=_bert_model,
    tokens=BERT_TOKENS,
    around=("cls_token", "sep_token"),
    pipeline=_word_piece,
    is_rebuilt_by_4=True,
)

_XLM_ROBERTA = Family(
    model="Unigram",
    model_values=lambda unk_token, model: {"unk_id": 3, "byte_fallback": False},
    tokens=ROBERTA_TOKENS,
    around=("bos_token", "eos_token"),
    pipeline=_sentencepiece,
)

FAMILIES = {
    "XLMRobertaTokenizer": _XLM_ROBERTA,
    "CamembertTokenizer": replace(
        _XLM_ROBERTA, model_values=_camembert_model, extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
    ),
    "RobertaTokenizer": Family(
        model="BPE",
        model_values=_roberta_model,
        tokens=ROBERTA_TOKENS,
        around=("cls_token", "sep_token"),
        pipeline=_byte_level,
    ),
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
}
"""By the name of the class."""
