"""A bundle as a model of sentence-transformers (5.2 or later): `SentenceTransformer(BUNDLE, trust_remote_code=True)`.

modules.json of every bundle names `BundleModule` by its dotted path; sentence-transformers imports it from here, where
mexma-runtime is installed, and fetches no code.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from mexma_runtime.bundle.bundle import Bundle, lock_folder, read_manifest
from mexma_runtime.bundle.companions import (
    COMPANIONS,
    CONFIG,
    SETTINGS,
    check_settings,
    contradiction,
    model_settings,
    other_modules,
    with_companions,
    write_companions,
)
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.encoder import ITER_WINDOW_TEXTS, Encoder
from mexma_runtime.errors import BundleError, EngineUnavailableError, InputError, UsageError, file_errors
from mexma_runtime.integrations.shared import importing
from mexma_runtime.load_options import LoadOptions, check_load_options
from mexma_runtime.process import NATIVE
from mexma_runtime.types import Ragged

with importing("sentence_transformers", package="sentence-transformers", extra="sentence-transformers"):
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

try:
    from sentence_transformers.base.modules import InputModule
except ModuleNotFoundError:  # before 5.4
    from sentence_transformers.models import InputModule

OPENING = threading.Lock()
"""Held while an encoder is opened: one for all modules, since a module has to be pickled."""
OF_PYTORCH = {
    "dtype": "the engine's precision is `precision`: fp32, fp16 or int8",
    "torch_dtype": "the engine's precision is `precision`: fp32, fp16 or int8",
    "device_map": "the engine's device is `device`: cpu or cuda",
    "provider": "the library that runs the engine is `backend`: onnxruntime, openvino or tensorrt",
    "trust_remote_code": "it is SentenceTransformer's own argument, and a bundle is no model of another kind",
    "file_name": "an engine is chosen by `engine`, or by `precision`, `recipe` and `dialect`",
}
"""model_kwargs of models in PyTorch, ONNX and OpenVINO, and what a bundle has in their place."""
OPTIONS = ("verify", *LoadOptions.__annotations__)
"""What `model_kwargs` may have."""
ENCODE = inspect.signature(SentenceTransformer.encode)


class BundleModule(InputModule):
    """The one module of such a model: texts in, the vectors of an `Encoder` out, as its bundle pools and normalises.

    The encoder is opened when it is first needed, on the device that the model is on, and again in each process that
    the module is pickled into or that forks.
    """

    def __init__(self, bundle: str | os.PathLike[str], *, verify: bool = False, **options: Unpack[LoadOptions]) -> None:
        """`verify` and `options` as in `Encoder.load`; without `device` the engine is where PyTorch has the module.

        Raises what `Bundle.open` does, and for options that are none; what else `Encoder.load` raises, when the encoder
        is opened.
        """
        super().__init__()
        check_load_options(options)
        self._bundle = Bundle.open(bundle, verify=verify)
        self._options = options
        self._max_seq_length: int | None = None
        self._tokenizer: Any = None
        self._opened: tuple[tuple[str, int], Encoder] | None = None
        """Where: PyTorch's device and the process."""
        # A module has a device by a tensor of it.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **others: Any,
    ) -> Self:
        """What sentence-transformers calls; `model_kwargs` are the options of `Encoder.load`.

        Raises UsageError for arguments that mean nothing to an engine, and BundleError where a companion contradicts
        bundle.json.
        """
        if backend != "torch":
            raise UsageError(
                f"backend={backend!r} is sentence-transformers' own for models in PyTorch's layout: leave it out; what "
                "runs a bundle's engine is chosen by model_kwargs={'backend': 'onnxruntime'} (or openvino, tensorrt)"
            )
        options = dict(model_kwargs or {})
        if unknown := sorted(map(str, options.keys() - OPTIONS)):
            hints = "".join(f"; {OF_PYTORCH[name]}" for name in unknown if name in OF_PYTORCH)
            raise UsageError(
                f"model_kwargs: a bundle takes none called {', '.join(unknown)}, but "
                f"{', '.join(OPTIONS)}, as Encoder.load does{hints}"
            )
        max_seq_length = None
        for name in ("processor_kwargs", "tokenizer_kwargs", "config_kwargs"):
            given = dict(others.get(name) or {})
            if name != "config_kwargs":
                max_seq_length = given.pop("model_max_length", max_seq_length)
            if given:
                raise UsageError(
                    f"{name}: got {given!r}: tokenizer and model are the bundle's, which takes no more than "
                    "processor_kwargs={'model_max_length': N}"
                )
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        module = cls(folder or model_name_or_path, **options)
        check_settings(module._bundle.folder, module._bundle.manifest)
        module._max_seq_length = max_seq_length
        return module

    def on_model_ready(self, model: Any) -> None:
        """What sentence-transformers calls from version 6 on when it has made the model of its modules.

        The encoder is opened, so that what keeps it from running is told now.
        """
        del model
        _ = self.encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder on the module's device and of this process, opened if need be."""
        place = str(self._place.device), os.getpid()
        with NATIVE, OPENING:  # a fork waits until it is free
            if self._opened is None or self._opened[0] != place:
                if self._opened is not None:
                    self._opened[1].close()
                    self._opened = None
                options: LoadOptions = {"device": place[0], **self._options}
                encoder = Encoder.from_bundle(self._bundle, **options)
                if self._max_seq_length is not None:
                    encoder.max_seq_length = self._max_seq_length
                self._opened = place, encoder
            return self._opened[1]

    @property
    def model_settings(self) -> dict[str, Any]:
        """The checkpoint's prompts and similarity function, for `SentenceTransformer(modules=[module], **settings)`."""
        return model_settings(self._bundle.manifest)

    @property
    def tokenizer(self) -> Any:
        """The bundle's tokenizer as transformers has it, a PreTrainedTokenizerFast. Changing it changes no vector."""
        if self._tokenizer is None:
            tokenizer = self.encoder.tokenizer
            special = {"pad_token": tokenizer.id_to_token(self._bundle.manifest.text.padding_id)}
            if ends := tokenizer.encode("").tokens:
                special |= {"cls_token": ends[0], "sep_token": ends[-1]}
            self._tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_object=tokenizer, model_max_length=self.max_seq_length, **special
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, _: object) -> None:
        raise UsageError("tokenizer: it is the bundle's: export the checkpoint with another")

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text, special ones included; it may be set to less than the model's limit."""
        return self._max_seq_length or self._bundle.manifest.text.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, limit: int) -> None:
        self.encoder.max_seq_length = limit
        self._max_seq_length = limit
        self._tokenizer = None

    @property
    def is_normalized(self) -> bool:
        """Whether vectors have length 1 as they are."""
        return self._bundle.manifest.is_normalized

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return self._bundle.manifest.dim

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Token ids of texts: `input_ids` and `attention_mask`, int64 `(n, longest)`, 0 beyond a text's end.

        Texts of more than `max_seq_length` tokens are cut without a word, as sentence-transformers does. InputError for
        what is no text.
        """
        if options.get("processing_kwargs"):
            raise UsageError("processing_kwargs: a bundle takes none; texts are cut earlier by model.max_seq_length")
        try:
            ragged = self.encoder.tokenize(inputs, prompt=prompt or "").ragged
        except InputError as error:
            if error.index is None:
                raise
            # sentence-transformers has sorted the texts, and hands over a batch of them: the place there is no help.
            raise InputError(f"{str(error).partition(': ')[2]}: {str(inputs[error.index])[:80]!r}") from None
        is_token = np.arange(ragged.lengths.max(initial=0)) < ragged.lengths[:, None]
        ids = np.zeros(is_token.shape, dtype=np.int64)
        ids[is_token] = ragged.ids
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(is_token.astype(np.int64))}

    def tokenize(self, texts: Sequence[str], **options: Any) -> dict[str, Any]:
        """What `preprocess` was called before sentence-transformers 5.4."""
        return self.preprocess(texts, **options)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, float32 `(n, dim)` on the module's device, to the `features` of `preprocess`.

        Without `attention_mask` all ids are tokens. Raises InputError for ids that are none.
        """
        ids = features["input_ids"]
        mask = features.get("attention_mask", torch.ones_like(ids))
        if ids.is_floating_point() or ids.ndim != 2 or mask.shape != ids.shape:
            raise InputError(
                f"expected integers input_ids and attention_mask (n, length), got {ids.dtype} {tuple(ids.shape)} and "
                f"{tuple(mask.shape)}"
            )
        is_token = mask.cpu().numpy().astype(bool)
        # Those that int32 does not hold stay beyond the vocabulary.
        numbers = ids.cpu().numpy()[is_token].clip(-1, np.iinfo(np.int32).max).astype(np.int32)
        vectors = self.encoder.encode_ids(Ragged.from_lengths(numbers, is_token.sum(axis=1)))
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self._place.device)
        return features

    def require_savable(self, folder: Path, model: SentenceTransformer) -> None:
        """UsageError where `model`, with this as its first module, could not be saved in `folder` and opened again."""
        if said := contradiction(functools.partial(getattr, model), self._bundle.manifest):
            raise UsageError(
                f"{folder}: not saved: the model has {said}: a bundle keeps its checkpoint's; others are given when "
                "it is loaded, or to the checkpoint, exported again"
            )
        there = read_manifest(folder)
        named = there.companions if there else ()
        if foreign := [name for name in COMPANIONS if name not in named and (folder / name).exists()]:
            raise UsageError(
                f"{folder}: not saved: {', '.join(foreign)} of another model is there: choose another folder"
            )
        kinds = [f"{type(module).__module__}.{type(module).__name__}" for module in list(model)[1:]]
        if there and kinds != (saved := other_modules(folder)):
            raise UsageError(
                f"{folder}: not saved: the model there has behind its bundle {', '.join(saved) or 'nothing'}, and this "
                f"one {', '.join(kinds) or 'nothing'}: choose another folder"
            )

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """Copy the bundle into the folder `output_path`, without what belongs to this machine, bundle.json last.

        Raises UsageError where `max_seq_length` would be lost; BundleError where another bundle is there, another
        process writes there, a file of this bundle is damaged, or settings that were saved there are not the bundle's.
        """
        del arguments, options
        folder, own = Path(output_path), with_companions(self._bundle.manifest)
        if self.max_seq_length != own.text.max_tokens:
            raise UsageError(
                f"{folder}: not saved: max_seq_length is {self.max_seq_length}, and a bundle keeps its checkpoint's "
                f"{own.text.max_tokens}: set it back to save, and again when the model is loaded"
            )
        with file_errors(folder, "cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock_folder(descriptor, folder)
            there = read_manifest(folder)
            try:
                if there and with_companions(there) != own:
                    raise BundleError(folder / MANIFEST_NAME, "another bundle is there: save into another folder")
                if (folder / SETTINGS).exists():
                    check_settings(folder, own)
            except BundleError:
                if there:  # sentence-transformers may have put others in the place of its settings
                    write_companions(folder, there, (SETTINGS,))
                raise
            self._bundle.copy_files(folder)
            if there != own:
                write_whole(folder / MANIFEST_NAME, own.to_json().encode())
            write_companions(folder, own, COMPANIONS if not other_modules(folder) else (CONFIG, SETTINGS))
        finally:
            os.close(descriptor)

    def get_config_dict(self) -> dict[str, Any]:
        """What the module was made of, for its repr."""
        return {"bundle": self._bundle.folder.name, **self._options}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *arguments: Any, **options: Any) -> Self:
        """Move the module: all that moves is where its encoder will be opened."""
        try:
            return super()._apply(fn, *arguments, **options)
        except (AssertionError, RuntimeError) as error:
            raise EngineUnavailableError(
                f"PyTorch cannot use the device that was asked for ({error}): SentenceTransformer(..., device='cpu'); "
                "where the engine runs may be another: model_kwargs={'device': 'cuda'}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_tokenizer": None}


class BundleTransformer(SentenceTransformer):
    """A SentenceTransformer of a bundle. Whatever one gets a BundleModule as its first module becomes one."""

    @functools.wraps(SentenceTransformer.encode)
    def encode(self, *arguments: Any, **how: Any) -> Any:
        """As there, but for `batch_size`: an encoder makes its own batches, for which 32 texts are few."""
        how = dict(ENCODE.bind_partial(self, *arguments, **how).arguments)
        how |= how.pop("kwargs", {})
        del how["self"]
        first = self[0]
        if isinstance(first, BundleModule):
            if how.get("output_value") == "token_embeddings":
                raise UsageError(
                    "output_value: expected 'sentence_embedding', all that an engine gives of a text, got "
                    "'token_embeddings'"
                )
            if isinstance(how.get("device"), str | torch.device):
                self.to(how["device"])  # which says what to do where PyTorch has none such
            if first.is_normalized and len(self) == 1 and how.get("truncate_dim") is self.truncate_dim is None:
                how["normalize_embeddings"] = False  # never twice
            batch_size = how.get("batch_size", 1)
            if isinstance(batch_size, int) and batch_size > 0:
                how["batch_size"] = max(batch_size, ITER_WINDOW_TEXTS)
        return super().encode(**how)

    @functools.wraps(SentenceTransformer.save)
    def save(self, path: str, *arguments: Any, **options: Any) -> None:
        """As there; what cannot be saved is refused before anything is written."""
        first = self[0]
        if path and isinstance(first, BundleModule):
            first.require_savable(Path(path), self)
            first.save(path)  # in front of what sentence-transformers writes: whatever fails, fails here
        super().save(path, *arguments, **options)


# What sentence-transformers writes into files and prints.
BundleTransformer.__name__ = SentenceTransformer.__name__


def _adopt(model: torch.nn.Module, _: str, module: object) -> None:
    """What PyTorch calls whenever a model gets a module."""
    if isinstance(module, BundleModule) and type(model) is SentenceTransformer:
        model.__class__ = BundleTransformer


torch.nn.modules.module.register_module_module_registration_hook(_adopt)
