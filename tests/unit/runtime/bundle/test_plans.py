"""TensorRT plans beside a bundle: found for what they were built for, and refused for all else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import (
    LAYERS,
    HardwareCompatibility,
    Plan,
    Platform,
    Profile,
    Range,
    RtxPlatform,
    find_plan,
    plans_folder,
    read_plan,
)
from mexma_runtime.errors import BundleError, EngineUnavailableError

H200 = Platform(gpu="NVIDIA H200", capability="9.0", tensorrt="10.16.1.11")
H100 = dataclasses.replace(H200, gpu="NVIDIA H100 80GB HBM3")
A10 = dataclasses.replace(H200, gpu="NVIDIA A10", capability="8.6")
T4 = dataclasses.replace(H200, gpu="Tesla T4", capability="7.5")
RTX_4090 = RtxPlatform(capabilities=["8.9"], tensorrt_rtx="1.7.1.116")
LATER = dataclasses.replace(H200, tensorrt="11.4.0.106")


@pytest.fixture
def entry(tiny_bundle: Path) -> EngineEntry:
    return next(entry for entry in Bundle.open(tiny_bundle).manifest.engines if entry.name == "portable.fp16")


def put(folder: Path, plan: Plan, *, data: bytes = b"plan") -> Path:
    place = plans_folder(folder, plan.target)
    place.mkdir(parents=True, exist_ok=True)
    (place / plan.file).write_bytes(data)
    path = place / f"{plan.engine}.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    return path


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    assert read_plan(put(tmp_path, plan)) == plan


def test_folders_are_named_after_gpu_capability_and_version() -> None:
    assert H100.folder_name == "nvidia-h100-80gb-hbm3-sm90-trt10.16.1.11"
    names = {target.folder_name for target in (H200, H100, A10, T4, LATER)}
    assert len(names) == 5
    assert str(T4) == "Tesla T4 (compute capability 7.5) with TensorRT 10.16.1.11"


@pytest.mark.parametrize(
    ("compatibility", "runs"),
    [
        (HardwareCompatibility.NONE, [H200]),
        (HardwareCompatibility.SAME_CAPABILITY, [H200, H100]),
        (HardwareCompatibility.AMPERE_PLUS, [H200, H100, A10]),
    ],
)
def test_where_a_plan_may_run(plan: Plan, compatibility: HardwareCompatibility, runs: list[Platform]) -> None:
    compatible = dataclasses.replace(plan, compatibility=compatibility)
    assert [target for target in (H200, H100, A10, T4, LATER) if compatible.runs_on(target)] == runs


def test_the_plan_for_this_machine_is_found_among_others(plan: Plan, entry: EngineEntry, tmp_path: Path) -> None:
    for target in (A10, H200, LATER):
        put(tmp_path, dataclasses.replace(plan, target=target))
    described = put(tmp_path, dataclasses.replace(plan, engine="portable.int8.tensorrt.int8", file="other.plan"))
    # The inspector's output of another engine comes first in the folder, and is no plan.
    (described.parent / f"portable.a{LAYERS}").write_text("[]", encoding="utf-8")
    found, path = find_plan(tmp_path, entry, H200)
    assert (found, path) == (plan, plans_folder(tmp_path, H200) / plan.file)


def test_none_says_how_to_build_one(entry: EngineEntry, tmp_path: Path) -> None:
    said = r"no TensorRT plan of engine portable\.fp16 for NVIDIA H200 .*; there is none\. Build one on this machine: "
    with pytest.raises(
        EngineUnavailableError, match=said + r"mexma build .* --target tensorrt --engine portable\.fp16$"
    ):
        find_plan(tmp_path, entry, H200)


def test_a_plan_for_another_gpu_version_or_graph_is_refused(plan: Plan, entry: EngineEntry, tmp_path: Path) -> None:
    put(tmp_path, dataclasses.replace(plan, target=A10))
    put(tmp_path, dataclasses.replace(plan, target=LATER))
    put(tmp_path, dataclasses.replace(plan, graph="model.portable.fp16.0123.onnx"))
    with pytest.raises(EngineUnavailableError) as refused:
        find_plan(tmp_path, entry, H200)
    for said in ("NVIDIA A10 (compute", "TensorRT 11.4.0.106", "from an older export of the engine", "mexma build"):
        assert said in str(refused.value)


def rtx_plan(plan: Plan, *capabilities: str, version: str = "1.7.1.116") -> Plan:
    target = RtxPlatform(capabilities=list(capabilities), tensorrt_rtx=version)
    file = f"{plan.engine}.{len(capabilities)}.plan"
    return dataclasses.replace(plan, target=target, compatibility=None, file=file)


def test_a_plan_for_rtx_runs_on_its_capabilities_with_its_version(
    plan: Plan, entry: EngineEntry, tmp_path: Path
) -> None:
    shared, own = rtx_plan(plan, "8.6", "8.9", "12.0"), rtx_plan(plan, "8.9")
    for other in (shared, rtx_plan(plan, "8.6"), rtx_plan(plan, "8.9", version="1.8.0.1"), plan):
        put(tmp_path, other)
    assert read_plan(put(tmp_path, shared)) == shared
    assert find_plan(tmp_path, entry, RTX_4090)[0] == shared
    put(tmp_path, own)
    assert find_plan(tmp_path, entry, RTX_4090)[0] == own  # made for fewer GPUs
    assert find_plan(tmp_path, entry, H200)[0] == plan
    assert not shared.runs_on(H200)
    assert not plan.runs_on(RTX_4090)
    assert shared.target.folder_name == "sm86-sm89-sm120-rtx1.7.1.116"


def test_what_is_damaged_or_of_others_keeps_no_good_plan_from_being_found(
    plan: Plan, entry: EngineEntry, tmp_path: Path
) -> None:
    put(tmp_path, plan)
    for target in (A10, LATER):
        put(tmp_path, dataclasses.replace(plan, target=target)).write_text("{}", encoding="utf-8")
    for name in ("._portable.fp16.json", "notes.json"):
        (plans_folder(tmp_path, H200) / name).write_text("{}", encoding="utf-8")
    assert find_plan(tmp_path, entry, H200)[0] == plan
    with pytest.raises(BundleError, match="expected schema 1: remove it, and build the plan again"):
        find_plan(tmp_path, entry, H100)


@pytest.mark.parametrize("change", [{"profiles": []}, {"file": ""}, {"file": ".."}, {"file": "a\0b"}, {"size": "4"}])
def test_a_description_that_says_what_cannot_be_is_refused(
    change: dict[str, object], plan: Plan, tmp_path: Path
) -> None:
    path = put(tmp_path, plan)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(BundleError, match=r"leaves the folder|build the plan again"):
        read_plan(path)


def test_of_many_plans_for_others_some_are_listed(plan: Plan, entry: EngineEntry, tmp_path: Path) -> None:
    for number in range(15):
        put(tmp_path, dataclasses.replace(plan, target=dataclasses.replace(A10, tensorrt=f"10.{number}")))
    with pytest.raises(EngineUnavailableError, match=r"and 5 more\. Build one on this machine"):
        find_plan(tmp_path, entry, H200)


def test_a_damaged_plan_is_said(plan: Plan, entry: EngineEntry, tmp_path: Path) -> None:
    path = put(tmp_path, plan, data=b"short")
    with pytest.raises(BundleError, match="expected 4 bytes, got 5: build the plan again"):
        find_plan(tmp_path, entry, H200)
    (path.parent / plan.file).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        find_plan(tmp_path, entry, H200)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be read"):
        find_plan(tmp_path, entry, H200)
    path.write_text(json.dumps({"schema": 99}), encoding="utf-8")
    with pytest.raises(BundleError, match="expected schema 1"):
        find_plan(tmp_path, entry, H200)


def test_a_file_outside_the_folder_is_refused(plan: Plan, entry: EngineEntry, tmp_path: Path) -> None:
    path = put(tmp_path, plan)
    path.write_text(dataclasses.replace(plan, file="../../x").to_json(), encoding="utf-8")
    with pytest.raises(BundleError, match="leaves the folder: refused"):
        find_plan(tmp_path, entry, H200)


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_profile_holds_what_is_within_both_ranges(n_sentences: int, longest: int) -> None:
    profile = Profile(name="x", n_sentences=Range(least=2, best=3, most=8), longest=Range(least=4, best=8, most=16))
    assert profile.holds(n_sentences, longest) == (2 <= n_sentences <= 8 and 4 <= longest <= 16)
