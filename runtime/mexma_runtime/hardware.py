"""What this process may use of the machine: cores, quota, instruction sets, memory. Parsers are pure."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8"),
    *("neon", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"),
)
"""Those that change the speed or the rounding of an engine, as Linux spells them."""
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""x86: any of them sums products of uint8 and int8 exactly; without, pairs of products saturate at 16 bits."""
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that keep oneDNN, which computes for OpenVINO, from using all of an x86 processor."""

_AVX512 = ("avx2", "avx512f")
_AVX512_FP16 = (*_AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni")
_AMX = (*_AVX512_FP16, "amx_bf16", "amx_int8")
_LEFT_BY_LIMIT: dict[str, tuple[str, ...]] = {
    "sse41": (),
    "avx": (),
    "avx2": ("avx2",),
    "avx2_vnni": ("avx2", "avx_vnni"),
    "avx2_vnni_2": ("avx2", "avx_vnni"),
    "avx512_core": _AVX512,
    "avx512_core_vnni": (*_AVX512, "avx512_vnni"),
    "avx512_core_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    **dict.fromkeys(("avx512_core_fp16", "avx10_1_512", "avx10_2_512"), _AVX512_FP16),
    **dict.fromkeys(("avx512_core_amx", "avx512_core_amx_fp16", "avx10_1_512_amx", "avx10_1_512_amx_fp16"), _AMX),
    "avx10_2_512_amx_2": _AMX,
}
"""What each value of ONEDNN_LIMITS leaves of INSTRUCTION_SETS (oneDNN's guide, "CPU Dispatcher Control")."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Processor and memory, as far as this process may use them."""

    processor: str
    instruction_sets: tuple[str, ...]
    n_logical_cpus: int
    """Allowed by the process's affinity."""
    n_physical_cores: int
    """Those that the allowed logical CPUs belong to."""
    cpu_quota: float | None
    """Processors' worth of time that the cgroups grant; None: no limit."""
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    """What the machine has free, and no more than the limits of the process and of its cgroups leave."""

    @property
    def n_usable_cores(self) -> int:
        """Threads that can compute at full speed at once: physical cores, held under the quota."""
        if self.cpu_quota is None:
            return self.n_physical_cores
        return max(1, min(self.n_physical_cores, int(self.cpu_quota)))


def detect_hardware(root: Path = Path("/")) -> Hardware:
    """Read /proc, /sys and the affinity; what cannot be read is left out, never guessed high."""
    cpus = _allowed_cpus()
    processor, instruction_sets = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    memory = parse_meminfo(_read(root / "proc/meminfo"))
    sizes = (memory.get("MemAvailable"), read_memory_left(root), read_limit_left(root))
    free = [size for size in sizes if size is not None]
    topology = root / "sys/devices/system/cpu"
    siblings = {cpu: _read(topology / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return Hardware(
        processor=processor or platform.processor() or platform.machine() or "unknown",
        instruction_sets=instruction_sets,
        n_logical_cpus=len(cpus),
        n_physical_cores=count_cores(siblings),
        cpu_quota=read_cpu_quota(root),
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=min(free, default=None),
    )


def default_threads(hardware: Hardware, environment: Mapping[str, str] = os.environ) -> int:
    """Threads that an encoder takes unless told otherwise: OMP_NUM_THREADS, where it is set, else `n_usable_cores`.

    Of a list such as `4,2`, one number for each level of nesting, the first counts; what OpenMP takes for no number is
    passed over.
    """
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    is_number = first.isdecimal() and len(first) < 10 and 0 < int(first) <= most_threads()
    return int(first) if is_number else hardware.n_usable_cores


def most_threads() -> int:
    """More than anybody computes one batch with; each is started and costs megabytes."""
    return max(64, 16 * (os.cpu_count() or 1))


def describe_processor(*, uses_onednn: bool = False) -> str:
    """The processor's name and the relevant instruction sets that a library uses of it, as a certificate keeps them."""
    hardware = detect_hardware()
    used = onednn_instruction_sets(hardware.instruction_sets) if uses_onednn else hardware.instruction_sets
    words = " ".join(used) or "no instruction sets known"
    limit = "" if used == hardware.instruction_sets else "; {}={}".format(*_onednn_limit(os.environ))
    return f"{hardware.processor} ({words}{limit})"


def onednn_instruction_sets(
    instruction_sets: tuple[str, ...], environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Those that oneDNN uses, which ONEDNN_LIMITS may hold down; a value that it does not know changes nothing."""
    _, value = _onednn_limit(environment)
    left = _LEFT_BY_LIMIT.get(value.lower(), _AMX)
    return tuple(name for name in instruction_sets if name in left or name not in _AMX)


def sums_int8_exactly(instruction_sets: Iterable[str]) -> bool:
    """Whether products of uint8 and int8 are summed without saturating: VNNI on x86, always on ARM."""
    return not {*VNNI, "asimd", "neon"}.isdisjoint(instruction_sets)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and relevant instruction sets of the first processor in /proc/cpuinfo's text, x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", ""), tuple(name for name in INSTRUCTION_SETS if name in flags)


def parse_cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list such as `0-3,8,10-11`."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def count_cores(siblings: Mapping[int, str]) -> int:
    """Physical cores of the CPUs, each with its thread_siblings_list; a CPU without one counts as a core."""
    return len({parse_cpu_list(text) or frozenset({cpu}) for cpu, text in siblings.items()})


def parse_meminfo(text: str) -> dict[str, int]:
    """The sizes in /proc/meminfo's text, or /proc/self/status's, in bytes."""
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) == 3 and words[2] == "kB"}


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota of this process's cgroup (version 1 or 2) and those above it, in processors."""
    quotas = [
        quota
        for folder in _cgroup_folders(root, "cpu")
        for quota in (
            parse_quota(_read(folder / "cpu.max")),
            parse_quota(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"),
        )
        if quota is not None
    ]
    return min(quotas, default=None)


def read_memory_left(root: Path = Path("/")) -> int | None:
    """Bytes left under the tightest memory limit of this process's cgroup (version 1 or 2) and those above it.

    Cached files that were not read lately are dropped where memory is short, so they count as free. None: no limit.
    """
    left = []
    for folder in _cgroup_folders(root, "memory"):
        cached = parse_memory_stat(_read(folder / "memory.stat"))
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            sizes = [_read(folder / name).strip() for name in (limit, usage)]
            if all(size.isdecimal() for size in sizes):
                left.append(max(0, int(sizes[0]) - int(sizes[1]) + cached))
    return min(left, default=None)


def read_limit_left(root: Path = Path("/")) -> int | None:
    """Bytes left under this process's own limits on addresses and data (`ulimit -v` and `-d`); None: no limit."""
    used = parse_meminfo(_read(root / "proc/self/status"))
    limits = parse_limits(_read(root / "proc/self/limits"))
    names = (("Max address space", "VmSize"), ("Max data size", "VmData"))
    left = (limits[limit] - used[size] for limit, size in names if limit in limits and size in used)
    return min((max(0, n_bytes) for n_bytes in left), default=None)


def parse_limits(text: str) -> dict[str, int]:
    """The limits that hold now, by /proc/self/limits's text, without those that are `unlimited`."""
    found = (re.fullmatch(r"(\D+?) +(\d+) .*", line) for line in text.splitlines())
    return {match[1]: int(match[2]) for match in found if match}


def parse_memory_stat(text: str) -> int:
    """Bytes of cached files that were not read lately, with those of the groups below, by a memory.stat's text."""
    fields = dict(line.split(maxsplit=1) for line in text.splitlines())
    return int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)


def l2_cache_bytes() -> int | None:
    """The second-level cache, as the C library tells it: 0 where it does not know; None where it is not asked so."""
    if "SC_LEVEL2_CACHE_SIZE" not in getattr(os, "sysconf_names", ()):
        return None
    return max(0, os.sysconf("SC_LEVEL2_CACHE_SIZE"))


def parse_quota(text: str) -> float | None:
    """Processors in `quota period`, the text of cpu.max; None where there is no limit (`max`, or -1 in version 1)."""
    words = text.split()
    try:
        quota, period = int(words[0]), int(words[1])
    except (IndexError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def cgroup_folders(membership: str, mounts: str, kind: str) -> Iterator[str]:
    """The folders whose limits hold for a process: its own cgroup's and all above, as far as they are mounted.

    `kind` of limits: `cpu` or `memory`.
    `membership` is the text of /proc/self/cgroup, `mounts` that of /proc/self/mountinfo.
    """
    groups: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mount_root, mount_point = left.split()[3:5]
        filesystem, _, options = right.split(maxsplit=2)
        is_version_2 = filesystem == "cgroup2"
        controller = "" if is_version_2 else kind
        if controller not in groups or not (is_version_2 or (filesystem == "cgroup" and kind in options.split(","))):
            continue
        group = PurePosixPath(groups[controller])
        # In a container the path may be the host's: then only the mount point itself is visible.
        visible = group.is_relative_to(mount_root) and ".." not in group.parts
        own = PurePosixPath(mount_point, group.relative_to(mount_root) if visible else "")
        yield from (str(folder) for folder in (own, *own.parents) if folder.is_relative_to(mount_point))


def _cgroup_folders(root: Path, kind: str) -> list[Path]:
    membership, mounts = _read(root / "proc/self/cgroup"), _read(root / "proc/self/mountinfo")
    return [root / name.lstrip("/") for name in cgroup_folders(membership, mounts, kind)]


def _onednn_limit(environment: Mapping[str, str]) -> tuple[str, str]:
    return next(((name, environment[name]) for name in ONEDNN_LIMITS if environment.get(name)), ("", ""))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
