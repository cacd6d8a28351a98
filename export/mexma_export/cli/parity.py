"""The command `mexma parity`."""

from __future__ import annotations

import functools
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from mexma_export.cli.options import SOURCE_HELP, JsonOption, RevisionOption, TokenizerOption, require_packages
from mexma_export.parity.breakdown import Side
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.bundle.whole_files import WholeFile, is_stdout, require_writable
from mexma_runtime.errors import ParityError, UsageError
from mexma_runtime.terminal import note, progress_bars
from mexma_runtime.types import Precision


def register_parity(app: typer.Typer) -> None:
    """Add `mexma parity`."""

    @app.command("parity")
    def parity_command(
        bundle: Annotated[Path, typer.Option(help="Folder of the bundle.", readable=False)],
        reference: Annotated[str, typer.Option(help=f"The checkpoint that the bundle was made from. {SOURCE_HELP}")],
        precision: Annotated[list[Precision] | None, typer.Option(help="Only engines of these precisions.")] = None,
        device: Annotated[str, typer.Option(help="What to run engines on: cpu, or a GPU: cuda, cuda:1.")] = "cpu",
        backend: Annotated[
            str | None, typer.Option(help="Judge by this alone: onnxruntime, openvino, tensorrt, tensorrt-rtx.")
        ] = None,
        certify: Annotated[
            bool, typer.Option("--certify", help="Keep the verdicts in the bundle, as its engines' certificates.")
        ] = False,
        corpus: Annotated[
            Path | None,
            typer.Option(
                help="Sentences: a text file, one a line; a .tsv, language TAB text; or a folder of LANGUAGE.txt or "
                "NAME.SOURCE-TARGET.LANGUAGE files. Default: the package's own.",
                readable=False,
            ),
        ] = None,
        by: Annotated[
            list[Side] | None, typer.Option(help="Show figures by this too; the JSON always has both.")
        ] = None,
        mining: Annotated[
            Path | None,
            typer.Option(
                help="Folder of parallel files, NAME.SOURCE-TARGET.SOURCE and .TARGET or LANGUAGE.txt: count the "
                "source sentences that find a wrong translation (xsim).",
                readable=False,
            ),
        ] = None,
        mining_pivot: Annotated[
            str | None, typer.Option(help="Of LANGUAGE.txt files, the target of all others; default: eng.")
        ] = None,
        mining_lines: Annotated[int | None, typer.Option(help="Only the first lines of each parallel file.")] = None,
        sts: Annotated[
            Path | None,
            typer.Option(
                help="Lines of score TAB sentence TAB sentence: correlate cosines with the scores.", readable=False
            ),
        ] = None,
        report: Annotated[Path | None, typer.Option(help="Write all figures as JSON.", readable=False)] = None,
        revision: RevisionOption = None,
        tokenizer: TokenizerOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Compare every engine of a bundle with PyTorch; exit code 7 where one misses its thresholds."""
        require_packages("safetensors", "ml_dtypes")
        from mexma_export.bundle.comparison import certify as write_certificates
        from mexma_export.bundle.comparison import compare_bundle
        from mexma_export.checkpoint.sources import resolve_source
        from mexma_export.cli.parity_tables import show_parity
        from mexma_export.corpus.corpus import read_corpus
        from mexma_export.parity.mining import read_mining
        from mexma_export.parity.report_json import parity_json
        from mexma_export.parity.sts import read_sts

        if mining is None and (mining_pivot, mining_lines) != (None, None):
            raise UsageError("--mining-pivot and --mining-lines belong to --mining FOLDER, which was not given")
        sentences = read_corpus(corpus) if corpus else None
        bitexts = read_mining(mining, pivot=mining_pivot, n_lines=mining_lines) if mining else None
        pairs = read_sts(sts) if sts else None
        if report and is_stdout(report):
            raise UsageError(f"--report {report}: --json prints the same on stdout")
        if certify and (bundle / MANIFEST_NAME).is_file():
            require_writable(bundle / MANIFEST_NAME, replaces_link=True)
        with ExitStack() as stack:
            written = stack.enter_context(WholeFile(report)) if report else None
            bars = stack.enter_context(progress_bars())
            found = resolve_source(
                reference,
                revision=revision,
                tokenizer=tokenizer,
                progress=functools.partial(bars, f"making {reference}"),
            )
            verdicts, used = compare_bundle(
                bundle,
                found,
                corpus=sentences,
                mining=bitexts,
                sts=pairs,
                precisions=precision,
                device=device,
                backend=backend,
                progress=bars,
            )
            if written:
                written.write((json.dumps(parity_json(verdicts, used), indent=2) + "\n").encode())
        show_parity(verdicts, used, by=by or (), as_json=as_json)
        if certify:
            names, told = write_certificates(bundle, verdicts)
            for line in told:
                note(f"warning: {line}")
            note(f"certificates kept: {', '.join(names) or 'none'}")
        if short := [f"{v.engine.name}: {s}" for v in verdicts for s in v.shortfalls]:
            raise ParityError("\n".join(short))
