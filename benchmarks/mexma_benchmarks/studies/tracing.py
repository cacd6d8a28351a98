"""`python -m mexma_benchmarks.studies.tracing SOURCE --bundle DIR`: what the usual way to a graph gives, beside ours.

The usual way traces PyTorch's model with torch.onnx and then lets onnxruntime's transformer optimizer look for patterns
to fuse. Needs torch, transformers and onnxscript; at full size 20 GB of memory and 5 GB of disk.
"""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mexma_benchmarks.result.environment import detect_environment
from mexma_benchmarks.result.estimates import estimate_median, ratios
from mexma_benchmarks.run.timing import by_name, rounds
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.types import Ragged

TRACERS = ("dynamo", "torchscript")
SHAPES = ((1, 16), (1, 128), (32, 32))
N_ROUNDS = 7


def trace(folder: Path, tracer: str, out: Path) -> dict[str, Any]:
    """Trace the encoder of `folder` into `out`, then optimize it beside it; in this process."""
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    class FirstToken(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    example = (torch.full((2, 7), 5), torch.ones((2, 7), dtype=torch.long))
    names = ["input_ids", "attention_mask"]
    axes = {0: "batch", 1: "length"}
    dynamic: dict[str, Any] = (
        {"dynamo": True, "dynamic_shapes": (axes, axes)}
        if tracer == "dynamo"
        else {"dynamo": False, "dynamic_axes": dict.fromkeys(names, axes)}
    )
    start = time.perf_counter()
    torch.onnx.export(FirstToken(model), example, str(out), input_names=names, **dynamic)
    traced_s = time.perf_counter() - start
    sizes = {"num_heads": model.config.num_attention_heads, "hidden_size": model.config.hidden_size}
    del model
    start = time.perf_counter()
    fused = optimizer.optimize_model(str(out), model_type="bert", **sizes)
    fused.save_model_to_file(str(out.with_name("optimized.onnx")), use_external_data_format=True)
    return {
        "trace_s": traced_s,
        "optimize_s": time.perf_counter() - start,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "fused": {name: n for name, n in fused.get_fused_operator_statistics().items() if n},
    }


def _measure(graph: Path, encoder: Encoder, n_threads: int) -> dict[str, Any]:
    """ms of both engines on the same ids, taking turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    measured: dict[str, Any] = {}
    for n, length in SHAPES:
        ids = np.random.default_rng(0).integers(5, 1000, (n, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        ragged = Ragged.from_sequences(list(ids))
        theirs, ours = session.run(None, feeds)[0], encoder.encode_ids(ragged, as_pooled=True)
        calls = {"theirs": lambda f=feeds: session.run(None, f), "ours": lambda r=ragged: encoder.encode_ids(r)}
        columns = by_name(rounds(calls), N_ROUNDS)
        measured[f"{n} x {length}"] = {
            "samples_ms": columns,
            "median_ms": {name: estimate_median(column).median for name, column in columns.items()},
            "times_as_fast": estimate_median(ratios(columns["theirs"], columns["ours"])).median,
            "max_abs_difference": float(np.abs(theirs - ours).max()),
        }
    return measured


def main(
    source: Annotated[str, typer.Argument(help="A folder or standin:NAME.")],
    bundle: Annotated[Path | None, typer.Option(help="Our fp32 bundle of it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the result, as JSON.")] = None,
    tracer: Annotated[str | None, typer.Option(hidden=True)] = None,
    graph: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Trace a checkpoint in the usual ways, and time what comes of it beside our engine."""
    folder = resolve_source(source).folder
    if tracer and graph:
        typer.echo("RESULT " + json.dumps(trace(folder, tracer, graph)))
        return
    if bundle is None:
        raise typer.BadParameter("--bundle is missing")
    Bundle.open(bundle)
    n_threads = detect_hardware().n_usable_cores
    environment = detect_environment(("python", "-m", "mexma_benchmarks.studies.tracing"))
    results: dict[str, Any] = {"environment": dataclasses.asdict(environment)}
    with Encoder.load(bundle, precision="fp32", spinning=False) as encoder:
        for name in TRACERS:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "traced.onnx"
                command = [sys.executable, "-m", __spec__.name, source, "--tracer", name, "--graph", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
                if not found:
                    results[name] = {"error": (done.stderr or done.stdout).strip().splitlines()[-3:]}
                    continue
                results[name] = json.loads(found[1])
                for graph_name in ("traced", "optimized"):
                    try:
                        results[name][graph_name] = _measure(path.with_name(f"{graph_name}.onnx"), encoder, n_threads)
                    except Exception as error:  # noqa: BLE001 - whatever keeps the graph from running is the result
                        results[name][graph_name] = {"error": str(error)[:300]}
    text = json.dumps(results, indent=1, default=list) + "\n"
    if out:
        write_whole(out, text.encode())
    typer.echo(text, nl=False)


if __name__ == "__main__":
    typer.run(main)
