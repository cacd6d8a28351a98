from __future__ import annotations

import os
from pathlib import Path

import pytest

from mexma_runtime.hardware import (
    Hardware,
    cgroup_folders,
    count_cores,
    default_threads,
    describe_processor,
    detect_hardware,
    onednn_instruction_sets,
    parse_cpu_list,
    parse_cpuinfo,
    parse_meminfo,
    parse_quota,
    read_cpu_quota,
    read_limit_left,
    read_memory_left,
    sums_int8_exactly,
)

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480C
flags\t\t: fpu vme sse4_2 avx avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 avx_vnni amx_tile amx_int8
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes fphp asimdhp cpuid asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
VERSION_2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime shared:10 - cgroup cgroup rw,cpuset
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            X86,
            (
                "Intel(R) Xeon(R) Platinum 8480C",
                ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"),
            ),
        ),
        (ARM, ("", ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"))),
        ("", ("", ())),
    ],
)
def test_cpuinfo(text: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert parse_cpuinfo(text) == expected


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}), ("5", {5}), ("", set()), ("\n", set())]
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("siblings", "n_cores"),
    [
        ({0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}, 2),
        ({0: "0-1", 1: "0-1"}, 1),
        ({4: "0,4"}, 1),
        ({0: "", 1: ""}, 2),
        ({0: "0\n", 1: "1\n"}, 2),
    ],
)
def test_siblings_are_one_core(siblings: dict[int, str], n_cores: int) -> None:
    assert count_cores(siblings) == n_cores


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000", None), ("150000 100000\n", 1.5), ("-1 100000", None), ("\n \n", None), ("50000 100000", 0.5)],
)
def test_quotas(text: str, quota: float | None) -> None:
    assert parse_quota(text) == quota


@pytest.mark.parametrize(
    ("membership", "mounts", "folders"),
    [
        ("0::/a/b\n", VERSION_2, ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]),
        ("0::/\n", VERSION_2, ["/sys/fs/cgroup"]),
        ("0::/../..\n", VERSION_2, ["/sys/fs/cgroup"]),
        ("4:cpu,cpuacct:/x\n2:cpuset:/y\n", VERSION_1, ["/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/cpu,cpuacct"]),
        # A container that sees the host's path, with its own group mounted as the root, and one without it.
        ("0::/docker/1f\n", VERSION_2.replace(" / ", " /docker/1f "), ["/sys/fs/cgroup"]),
        ("0::/docker/1f\n", VERSION_2.replace(" / ", " /docker/2e "), ["/sys/fs/cgroup"]),
        ("0::/a:b\n", VERSION_2, ["/sys/fs/cgroup/a:b", "/sys/fs/cgroup"]),
        ("", "", []),
    ],
)
def test_the_groups_above_count_too(membership: str, mounts: str, folders: list[str]) -> None:
    assert list(cgroup_folders(membership, mounts, "cpu")) == folders


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_quota_holds_in_version_2(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "proc/self/mountinfo": VERSION_2,
            "sys/fs/cgroup/pod/container/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )

    assert read_cpu_quota(root) == 2.5


def test_the_tightest_quota_holds_in_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/pod\n0::/pod\n",
            "proc/self/mountinfo": VERSION_1,
            f"{folder}/pod/cpu.cfs_quota_us": "300000\n",
            f"{folder}/pod/cpu.cfs_period_us": "100000\n",
            f"{folder}/cpu.cfs_quota_us": "-1\n",
            f"{folder}/cpu.cfs_period_us": "100000\n",
        },
    )

    assert read_cpu_quota(root) == 3.0


def test_the_tightest_memory_limit_holds_in_version_2(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "proc/self/mountinfo": VERSION_2,
            "proc/meminfo": "MemTotal:  64 kB\nMemAvailable: 32 kB\n",
            "sys/fs/cgroup/pod/container/memory.max": "max\n",
            "sys/fs/cgroup/pod/container/memory.current": "1000\n",
            "sys/fs/cgroup/pod/memory.max": "5000\n",
            "sys/fs/cgroup/pod/memory.current": "3000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 1400\ninactive_file 600\n",
        },
    )

    assert read_memory_left(root) == 5000 - 3000 + 600
    assert detect_hardware(root).memory_available_bytes == 2600


def test_the_tightest_memory_limit_holds_in_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/pod\n",
            "proc/self/mountinfo": "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "proc/meminfo": "MemAvailable: 2 kB\n",
            f"{folder}/pod/memory.limit_in_bytes": "9223372036854771712\n",
            f"{folder}/pod/memory.usage_in_bytes": "1000\n",
            f"{folder}/memory.limit_in_bytes": "9000\n",
            f"{folder}/memory.usage_in_bytes": "9500\n",
            f"{folder}/memory.stat": "inactive_file 1\ntotal_inactive_file 700\n",
        },
    )

    assert read_memory_left(root) == 200
    assert detect_hardware(root).memory_available_bytes == 200


LIMITS = "\n".join(  # the file's lines end with spaces
    (
        "Limit                     Soft Limit           Hard Limit           Units     ",
        "Max data size             {data:<20} unlimited            bytes     ",
        "Max nice priority         0                    0                    ",
        "Max address space         {addresses:<20} unlimited            bytes     ",
    )
)


@pytest.mark.parametrize(
    ("addresses", "data", "left"),
    [
        ("unlimited", "unlimited", None),
        (10240, "unlimited", 8192),
        ("unlimited", 4096, 3072),
        (10240, 4096, 3072),
        (2048, 4096, 0),
        (1024, 4096, 0),
    ],
)
def test_the_limits_of_the_process_leave_less(
    tmp_path: Path, addresses: int | str, data: int | str, left: int | None
) -> None:
    root = machine(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 7 kB\n",
            "proc/self/limits": LIMITS.format(addresses=addresses, data=data),
            "proc/self/status": "Name:\tpython\nVmPeak:\t 9 kB\nVmSize:\t 2 kB\nVmData:\t 1 kB\n",
        },
    )

    assert read_limit_left(root) == left
    assert detect_hardware(root).memory_available_bytes == min(7168, 7168 if left is None else left)


def test_a_machine_without_proc_and_sys_is_described_all_the_same(tmp_path: Path) -> None:
    hardware = detect_hardware(tmp_path)

    assert hardware.processor
    assert (hardware.instruction_sets, hardware.cpu_quota, hardware.memory_total_bytes) == ((), None, None)
    assert hardware.memory_available_bytes is None
    assert hardware.n_physical_cores == hardware.n_logical_cpus


def test_siblings_and_memory_are_read(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    together = ",".join(map(str, cpus))
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": together for cpu in cpus}
    root = machine(
        tmp_path, {**files, "proc/cpuinfo": X86, "proc/meminfo": "MemTotal:  2 kB\nMemAvailable: 1 kB\nX: 3\n"}
    )

    hardware = detect_hardware(root)

    assert (hardware.n_logical_cpus, hardware.n_physical_cores) == (len(cpus), 1)
    assert (hardware.memory_total_bytes, hardware.memory_available_bytes) == (2048, 1024)
    assert hardware.processor == "Intel(R) Xeon(R) Platinum 8480C"


def test_meminfo_skips_what_is_not_a_size() -> None:
    assert parse_meminfo("MemTotal: 5 kB\nHugePages_Total:  7\nodd\n") == {"MemTotal": 5120}


@pytest.mark.parametrize(
    ("n_cores", "quota", "usable"), [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 16.0, 2)]
)
def test_threads_stay_under_the_quota(n_cores: int, quota: float | None, usable: int) -> None:
    hardware = Hardware(
        processor="one",
        instruction_sets=(),
        n_logical_cpus=16,
        n_physical_cores=n_cores,
        cpu_quota=quota,
        memory_total_bytes=None,
        memory_available_bytes=None,
    )

    assert hardware.n_usable_cores == usable
    for asked, taken in {"1": 1, "3": 3, "32": 32, "4,2": 4, " 2 ": 2}.items():
        assert default_threads(hardware, {"OMP_NUM_THREADS": asked}) == taken
    for nothing in ("", "0", "-1", "many", "1.5", ",2", "9" * 9, "9" * 20):
        assert default_threads(hardware, {"OMP_NUM_THREADS": nothing}) == usable
    assert default_threads(hardware, {}) == usable


def test_this_machine_is_plausible() -> None:
    hardware = detect_hardware()

    assert 1 <= hardware.n_usable_cores <= hardware.n_physical_cores <= hardware.n_logical_cpus
    assert hardware.n_logical_cpus == len(os.sched_getaffinity(0))
    assert hardware.processor in describe_processor()


ALL = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({}, ALL),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, ALL),
        ({"ONEDNN_MAX_CPU_ISA": "no such set"}, ALL),
        ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, ()),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, ("avx2",)),
        ({"DNNL_MAX_CPU_ISA": "avx2_vnni"}, ("avx2", "avx_vnni")),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "DNNL_MAX_CPU_ISA": "AVX2"}, ("avx2", "avx512f")),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, ("avx2", "avx512f", "avx512_vnni")),
        ({"ONEDNN_MAX_CPU_ISA": "AVX10_1_512"}, ALL[:-2]),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, ALL),
    ],
)
def test_what_a_limit_leaves_to_onednn(environment: dict[str, str], left: tuple[str, ...]) -> None:
    assert onednn_instruction_sets(ALL, environment) == left
    assert onednn_instruction_sets(("asimd", "i8mm"), environment) == ("asimd", "i8mm")


@pytest.mark.parametrize(
    ("instruction_sets", "is_exact"),
    [
        ((), False),
        (("avx2", "avx512f", "avx512_bf16"), False),
        (("avx2", "avx_vnni"), True),
        (("avx512_vnni",), True),
        (("amx_int8",), True),
        (("asimd",), True),
    ],
)
def test_who_sums_int8_exactly(instruction_sets: tuple[str, ...], is_exact: bool) -> None:
    assert sums_int8_exactly(instruction_sets) == is_exact


def test_a_limit_is_named_where_it_takes_something_away(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_processor()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")

    assert describe_processor() == whole
    if set(ALL) & set(detect_hardware().instruction_sets):
        assert describe_processor(uses_onednn=True).endswith("(no instruction sets known; ONEDNN_MAX_CPU_ISA=SSE41)")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert describe_processor(uses_onednn=True) == whole
