"""A bundle as a model of sentence-transformers (5.2 or later): `SentenceTransformer(BUNDLE, trust_remote_code=True)`.

modules.json of every bundle names `BundleModule` by its dotted path; sentence-transformers imports it from here, where
mexma-runtime is installed, and fetches no code.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.companions import SETTINGS, check_settings, model_settings, with_companions, write_companions
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.encoder import ITER_WINDOW_TEXTS, Encoder
from mexma_runtime.errors import BundleError, EngineUnavailableError, InputError, UsageError, file_errors
from mexma_runtime.integrations.shared import importing
from mexma_runtime.load_options import LoadOptions
from mexma_runtime.process import NATIVE
from mexma_runtime.types import Ragged

with importing("sentence_transformers", package="sentence-transformers", extra="sentence-transformers"):
    import sentence_transformers
    import torch
if hasattr(sentence_transformers, "base"):
    from sentence_transformers.base.modules import InputModule
else:  # before 5.4
    from sentence_transformers.models import InputModule

OPENING = threading.Lock()
"""Held while an encoder is opened: one for all modules, since a module has to be pickled."""
OF_PYTORCH = {
    "dtype": "the engine's precision is `precision`: fp32, fp16 or int8",
    "torch_dtype": "the engine's precision is `precision`: fp32, fp16 or int8",
    "device_map": "the engine's device is `device`: cpu or cuda",
    "provider": "the library that runs the engine is `backend`: onnxruntime, openvino or tensorrt",
    "file_name": "an engine is chosen by `engine`, or by `precision`, `recipe` and `dialect`",
}
"""model_kwargs of models in PyTorch, ONNX and OpenVINO, and what a bundle has in their place."""


class BundleModule(InputModule):
    """The one module of such a model: texts in, the vectors of an `Encoder` out, as its bundle pools and normalises.

    The encoder is opened when it is first needed, on the device that the model is on, and again in each process that
    the module is pickled into or that forks.
    """

    def __init__(self, bundle: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> None:
        """`options` as in `Encoder.load`; without `device` the engine is where PyTorch has put the module.

        Raises what `Bundle.open` does; what `Encoder.load` does, when the encoder is opened.
        """
        super().__init__()
        self._bundle = Bundle.open(bundle)
        self._options = options
        self._max_seq_length: int | None = None
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
        max_seq_length = None
        for name in ("processor_kwargs", "tokenizer_kwargs", "config_kwargs"):
            given = dict(others.get(name) or {})
            if name != "config_kwargs":
                max_seq_length = given.pop("model_max_length", max_seq_length)
            if given:
                raise UsageError(
                    f"{name}: expected none but the tokenizer's model_max_length, got {others[name]!r}: tokenizer and "
                    "model are the bundle's"
                )
        options = dict(model_kwargs or {})
        if unknown := sorted(options.keys() - LoadOptions.__annotations__.keys()):
            hints = "".join(f"; {OF_PYTORCH[name]}" for name in unknown if name in OF_PYTORCH)
            raise UsageError(
                f"model_kwargs: a bundle takes none called {', '.join(unknown)}, but "
                f"{', '.join(LoadOptions.__annotations__)}, as Encoder.load does{hints}"
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
        """The bundle's tokenizer, a `tokenizers.Tokenizer` of its own that neither cuts nor pads."""
        return self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text, special ones included; it may be set to less than the model's limit."""
        return self._max_seq_length or self._bundle.manifest.text.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, limit: int) -> None:
        self.encoder.max_seq_length = limit
        self._max_seq_length = limit

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

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, float32 `(n, dim)` on the module's device, to the `features` of `preprocess`."""
        is_token = features["attention_mask"].cpu().numpy().astype(bool)
        ids = features["input_ids"].cpu().numpy()[is_token].astype(np.int32)
        vectors = self.encoder.encode_ids(Ragged.from_lengths(ids, is_token.sum(axis=1)))
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self._place.device)
        return features

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """Copy the bundle into the folder `output_path`, without what belongs to this machine, bundle.json last.

        Raises BundleError where another bundle is there, or where the model's settings, which sentence-transformers has
        written there, are not the bundle's.
        """
        del arguments, options
        folder, own = Path(output_path), self._bundle
        there, saved = read_manifest(folder), with_companions(own.manifest)
        try:
            if there not in (None, own.manifest, saved):
                raise BundleError(folder / MANIFEST_NAME, "another bundle is there: save into another folder")
            check_settings(folder, saved)
        except BundleError:
            # What sentence-transformers has written there goes.
            if there and there.companions:
                write_companions(folder, there)
            else:
                (folder / SETTINGS).unlink(missing_ok=True)
            raise
        if there is None:
            with file_errors(folder, "cannot be written"):
                folder.mkdir(parents=True, exist_ok=True)
                for entry in saved.files:
                    shutil.copyfile(own.folder / entry.name, folder / entry.name)
        if there != saved:
            write_whole(folder / MANIFEST_NAME, saved.to_json().encode())
        write_companions(folder, saved)

    def get_config_dict(self) -> dict[str, Any]:
        """What the module was made of, for its repr."""
        return {"bundle": str(self._bundle.folder), **self._options}

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
        return {**self.__dict__, "_opened": None}


def _enlarge_batches(model: torch.nn.Module, _: str, module: object) -> None:
    """What PyTorch calls whenever a model gets a module: of a bundle, a SentenceTransformer makes larger batches."""
    if isinstance(module, BundleModule) and isinstance(model, sentence_transformers.SentenceTransformer):
        model.encode = functools.partial(_encode_in_large_batches, model)


def _encode_in_large_batches(model: Any, *arguments: Any, batch_size: int = 32, **how: Any) -> Any:
    """`encode` of sentence-transformers: an encoder makes its own batches, for which the 32 of there are few texts."""
    if len(arguments) > 3:
        arguments = *arguments[:3], _large(arguments[3]), *arguments[4:]
    else:
        how["batch_size"] = _large(batch_size)
    return type(model).encode(model, *arguments, **how)


def _large(batch_size: int) -> int:
    return ITER_WINDOW_TEXTS if 0 < batch_size < ITER_WINDOW_TEXTS else batch_size


torch.nn.modules.module.register_module_module_registration_hook(_enlarge_batches)
