"""The shapes that a plan has kernels for, from one readable specification each. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mexma_runtime.bundle.plans import Profile, Range
from mexma_runtime.errors import UsageError

LENGTHS = (32, 128, 512, 2048, 8192)
"""Where profiles end, below the model's most tokens: kernels are chosen for one shape of each."""
MAX_TOKENS = 1 << 22
"""Of a batch, padding included: far more than any GPU holds, and few enough for TensorRT to count."""
DEFAULT_SPECS = ("latency:8", "throughput:65536")
GRAMMAR = (
    "latency:N (1 to N sentences of any length), throughput:TOKENS (batches of so many tokens, padding included), or "
    "NxLENGTH (1 to N sentences of up to LENGTH tokens)"
)
_SPEC = re.compile(r"(?:(?P<name>latency|throughput):(?P<number>\d+)|(?P<most>\d+)x(?P<length>\d+))\Z", re.ASCII)


def parse_profiles(specs: Sequence[str], *, max_tokens: int) -> list[Profile]:
    """The profiles of `specs`, those for few sentences first: a batch runs by the first that holds it.

    `max_tokens`: of the model's longest sentence. UsageError where a specification cannot be read, or where the
    longest sentence fits into no profile.
    """
    found = [profile for spec in specs for profile in _parsed(spec, max_tokens)]
    for profile in found:
        if profile.n_sentences.most * profile.longest.most > MAX_TOKENS:
            raise UsageError(f"profile {profile.name}: at most {MAX_TOKENS:,} tokens, padding included")
    profiles = list({(profile.n_sentences, profile.longest): profile for profile in reversed(found)}.values())
    longest = max((profile.longest.most for profile in profiles), default=0)
    if longest < max_tokens:
        raise UsageError(
            f"profile: {', '.join(specs) or 'none'} holds sentences of up to {longest} tokens, and the model takes "
            f"{max_tokens}: add one that does, such as latency:8"
        )
    return sorted(profiles, key=lambda profile: (profile.n_sentences.most * profile.longest.most, profile.longest.most))


def _parsed(spec: str, max_tokens: int) -> list[Profile]:
    match = _SPEC.match(spec)
    if match is None or 0 in (numbers := [int(digits) for digits in re.findall(r"\d+", spec)]):
        raise UsageError(f"profile: expected {GRAMMAR}, got {spec!r}")
    if match["most"]:
        most, length = numbers
        length = min(length, max_tokens)
        return [_profile(f"{most}x{length}", most, length, is_for_one=False)]
    lengths = [length for length in LENGTHS if 2 * length <= max_tokens] + [max_tokens]
    if match["name"] == "latency":
        return [_profile(f"{spec}:{length}", numbers[0], length, is_for_one=True) for length in lengths]
    if numbers[0] < max_tokens:
        raise UsageError(f"profile {spec}: no room for one sentence of {max_tokens} tokens, as long as the model takes")
    return [_profile(f"{spec}:{length}", numbers[0] // length, length, is_for_one=False) for length in lengths]


def _profile(name: str, most: int, length: int, *, is_for_one: bool) -> Profile:
    return Profile(
        name=name,
        n_sentences=Range(least=1, best=1 if is_for_one else most, most=most),
        longest=Range(least=1, best=length, most=length),
    )
