"""`python -m mexma_runtime` is `mexma`."""

from __future__ import annotations

from mexma_runtime.cli.commands import main

main()
