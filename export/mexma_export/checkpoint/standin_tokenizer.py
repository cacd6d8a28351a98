"""The tokenizer of the stand-ins: XLM-R's pipeline and id layout, with pieces learnt from the package's own sample.

Unigram training in `tokenizers` sums floats in hash order, so two runs differ in scores and in the order of near ties.
Stand-ins must be byte-identical, so the trained file ships in `data/`. To train it again after the sample changed:

    python -m mexma_export.checkpoint.standin_tokenizer export/mexma_export/data/standin_tokenizer.json

and raise `FORMAT_VERSION` in standin.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mexma_export.corpus.sample import load_sample

N_PIECES = 8_000
"""Size of the vocabulary, special tokens included; the sample carries about 40 pieces more."""

_BOS, _PAD, _EOS, _UNK, _MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
_MAX_TOKENS = 512


def tokenizer_json() -> bytes:
    """The shipped tokenizer.json."""
    return (files("mexma_export") / "data" / "standin_tokenizer.json").read_bytes()


def tokenizer_config(model_input_names: Sequence[str]) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    The class is the generic one: it takes tokenizer.json as it is, where the `XLMRobertaTokenizer` of transformers 5
    builds its own pipeline around the vocabulary.
    """
    return {
        **special_tokens_map(),
        "clean_up_tokenization_spaces": False,
        "model_input_names": list(model_input_names),
        "model_max_length": _MAX_TOKENS,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": "right",
    }


def special_tokens_map() -> dict[str, str]:
    """The content of special_tokens_map.json."""
    return {
        "bos_token": _BOS,
        "cls_token": _BOS,
        "eos_token": _EOS,
        "mask_token": _MASK,
        "pad_token": _PAD,
        "sep_token": _EOS,
        "unk_token": _UNK,
    }


def train(texts: Iterable[str], n_pieces: int = N_PIECES) -> Tokenizer:
    """Learn a Unigram vocabulary of at most `n_pieces` and lay it out as XLM-R does.

    Ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the pieces by falling score, `<mask>` last.
    """
    tokenizer = Tokenizer(models.Unigram())
    # What XLM-R's precompiled `nmt_nfkc` map does, in tokenizers' own steps.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=n_pieces - 1, special_tokens=[_BOS, _PAD, _EOS, _UNK], unk_token=_UNK, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["vocab"]
    vocab = [(piece, float(score)) for piece, score in learnt] + [(_MASK, 0.0)]
    tokenizer.model = models.Unigram(vocab, unk_id=3, byte_fallback=False)
    tokenizer.add_special_tokens([_BOS, _PAD, _EOS, _UNK, AddedToken(_MASK, lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A {_EOS}",
        pair=f"{_BOS} $A {_EOS} {_EOS} $B {_EOS}",
        special_tokens=[(_BOS, 0), (_EOS, 2)],
    )
    return tokenizer


def main(out: Path) -> None:
    """Train on the shipped sample and write the tokenizer, compact, to `out`."""
    content = json.loads(train(line.text for line in load_sample()).to_str())
    out.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
