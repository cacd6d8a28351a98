"""What an export is asked for, checked before a checkpoint is read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mexma_export.quantize.options import QuantizationOptions
from mexma_runtime.backends import require_device
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, QUANTIZED, Dialect, Pooling, Precision


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to write, and where."""

    out: Path
    precisions: tuple[Precision, ...]
    dialects: tuple[Dialect, ...] = (Dialect.PORTABLE, Dialect.FUSED)
    pooling: Pooling | None = None
    """None: as the checkpoint says."""
    quantization: QuantizationOptions | None = None
    """What int8 and fp8 need to know."""
    check_parity: bool = True
    """False publishes engines that nothing has judged; the manifest shows it by their having no certificate."""
    device: str = "cpu"
    """What float engines are judged on: `cpu`, or a GPU, `cuda` or `cuda:1`."""

    def __post_init__(self) -> None:
        if not self.precisions or not self.dialects:
            raise UsageError("nothing to export: name a precision and a dialect or more")
        if QUANTIZED.isdisjoint(self.precisions) != (self.quantization is None):
            raise UsageError("int8 and fp8 go with a recipe and calibration text, other precisions do without")
        if self.quantization and self.quantization.min_cosine and not self.check_parity:
            raise UsageError("min_cosine is measured by the parity check: leave out --skip-parity, or --min-cosine")
        if self.check_parity:
            require_device(self.device)
        elif self.device != "cpu":
            raise UsageError(f"device: {self.device} is where engines are judged: leave out --skip-parity, or --device")

    @property
    def float_precisions(self) -> tuple[Precision, ...]:
        """Those that nothing is quantized for."""
        return tuple(precision for precision in self.precisions if precision not in QUANTIZED)


def quantized_dialects(request: ExportRequest) -> tuple[tuple[Dialect, ...], tuple[str, ...]]:
    """The dialects of int8 and fp8 that can be judged here, and what to tell the user of the others.

    UsageError where nothing would be left of what was asked for.
    """
    asked = tuple(dialect for dialect in request.dialects if dialect in PADDED_DIALECTS)
    recipes = request.quantization.recipes if request.quantization else ()
    if recipes and not asked:
        raise UsageError(f"there is no int8 in the dialect packed: ask for {' or '.join(PADDED_DIALECTS)}")
    for recipe in recipes:
        if recipe.modes.keys().isdisjoint(asked):
            raise UsageError(
                f"recipe {recipe.name} is for the dialect {' and '.join(recipe.modes)}, and {' and '.join(asked)} was "
                "asked for"
            )
    for_cpus = [recipe for recipe in recipes if Dialect.PORTABLE in recipe.modes and not recipe.is_for_tensorrt]
    is_judged = bool(for_cpus) and request.check_parity
    if not is_judged or Dialect.PORTABLE not in asked or find_spec("openvino"):
        return asked, ()
    what = "portable int8 engines are for OpenVINO, which is not installed to judge them"
    advice = "pip install 'mexma-runtime[openvino]', or export with --skip-parity"
    if asked == (Dialect.PORTABLE,) or len(for_cpus) < len(recipes):
        raise UsageError(f"{what}: {advice}")
    return tuple(d for d in asked if d is not Dialect.PORTABLE), (f"{what}: none was written: {advice}",)
