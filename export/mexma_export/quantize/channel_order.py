"""Channels put in an order in which those that are large in the same tokens share a group, and so a scale.

A group's scale follows from the largest of its channels, token by token. Channels that are large together are best kept
together: the groups without them get finer scales. The order in which an FFN computes its channels is free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
N_SWEEPS = 2
"""Times that each channel may move; after two, few still do."""
N_TRIED = 2
"""Groups whose channels it may change places with: those to which it would add least. More gained nothing."""
N_ITERATIONS = 15
"""To find a principal component by multiplication."""


def arranged(sample: Floats, share: Floats, weight: Floats, group_size: int) -> Integers:
    """An order, int64 `(in,)`, of the channels that `weight`, float32 `(in, out)`, reads in groups of `group_size`.

    `sample`, float32 `(tokens, in)`, and `share`, float32 `(tokens,)`, are as in InputStatistics.

    It lessens the sum over tokens and groups of (largest of the group)^2 x (gain of the group), which is what rounding
    adds to the output, but for a factor. A channel's gain is the square of its weights; channels are compared as
    smoothed by the square root of range over weights.
    """
    gain = np.square(weight).sum(axis=1)
    x = np.abs(sample)
    tiny = np.finfo(np.float32).tiny
    smoothing = np.sqrt(np.maximum(x.max(axis=0), tiny) / np.maximum(np.sqrt(gain), tiny))
    z = x / smoothing
    start = _parted(z * np.sqrt(share)[:, np.newaxis], np.arange(len(gain)), group_size)
    groups = _Groups(np.square(z), share, gain * np.square(smoothing), start.reshape(-1, group_size))
    for _ in range(N_SWEEPS):
        for channel in range(len(gain)):
            groups.move(channel)
    return groups.members.ravel()


def _parted(z: Floats, channels: Integers, group_size: int) -> Integers:
    """`channels` of `z`, float32 `(tokens, in)`, in an order to start from: halved by their principal component, again
    and again. Changes of place alone do not tell apart two groups that both hold channels of two kinds."""
    n_groups = len(channels) // group_size
    if n_groups <= 1:
        return channels
    centred = z[:, channels] - z[:, channels].mean(axis=1, keepdims=True)
    direction = np.random.default_rng(0).standard_normal(len(z)).astype(np.float32)
    for _ in range(N_ITERATIONS):
        direction = centred @ (direction @ centred)
        direction /= max(float(np.linalg.norm(direction)), float(np.finfo(np.float32).tiny))
    ordered = channels[np.argsort(direction @ centred, kind="stable")]
    middle = n_groups // 2 * group_size
    return np.concatenate([_parted(z, half, group_size) for half in (ordered[:middle], ordered[middle:])])


class _Groups:
    """Channels by group, with each token's largest in each."""

    def __init__(self, squares: Floats, share: Floats, gain: Floats, members: Integers) -> None:
        """`squares`, float32 `(tokens, in)`; `share`, float32 `(tokens,)`; `gain`, float32 `(in,)`."""
        self._squares, self._share, self._gain = np.ascontiguousarray(squares.T), share, gain
        self.members = members
        """int64 `(groups, size)`, each row sorted."""
        n_groups, n_tokens = len(members), len(share)
        self._group = np.empty(len(gain), np.int64)
        self._group[members] = np.arange(n_groups)[:, np.newaxis]
        self._first, self._second = (np.empty((n_groups, n_tokens), np.float32) for _ in range(2))
        self._owner = np.empty((n_groups, n_tokens), np.int64)
        self._mean, self._gains = (np.empty(n_groups, np.float32) for _ in range(2))
        for group in range(n_groups):
            self._update(group)

    def _update(self, group: int) -> None:
        members = self.members[group]
        members.sort()
        values = self._squares[members]
        top, tokens = values.argmax(axis=0), np.arange(values.shape[1])
        self._owner[group] = members[top]
        self._first[group] = values[top, tokens]
        values[top, tokens] = 0
        self._second[group] = values.max(axis=0)
        self._mean[group] = self._first[group] @ self._share
        self._gains[group] = self._gain[members].sum()

    def move(self, channel: int) -> None:
        """Let `channel` change places with the channel of another group with which that gains most, if any."""
        here, own = self._group[channel], self._squares[channel]
        left = np.where(self._owner[here] == channel, self._second[here], self._first[here])
        joined = np.maximum(self._first, own) @ self._share
        added = (joined - self._mean) * self._gains
        added[here] = np.inf
        least, best = 0.0, None
        for there in np.argsort(added)[: min(N_TRIED, len(self.members) - 1)]:
            members = self.members[there]
            # The mean of the group's largest with `channel`, less what each member adds to it where it is the largest.
            lost = np.maximum(self._second[there], own) - np.maximum(self._first[there], own)
            owners = np.searchsorted(members, self._owner[there])
            theirs = joined[there] + np.bincount(owners, weights=lost * self._share, minlength=len(members))
            ours = np.maximum(self._squares[members], left) @ self._share
            difference = self._gain[members] - self._gain[channel]
            after = ours * (self._gains[here] + difference) + theirs * (self._gains[there] - difference)
            change = after - self._mean[here] * self._gains[here] - self._mean[there] * self._gains[there]
            choice = int(change.argmin())
            if change[choice] < least:
                least, best = float(change[choice]), (int(there), int(members[choice]))
        if best:
            self._swap(channel, *best)

    def _swap(self, channel: int, there: int, other: int) -> None:
        here = int(self._group[channel])
        for group, old, new in ((here, channel, other), (there, other, channel)):
            members = self.members[group]
            members[members == old] = new
            self._group[new] = group
        self._update(here)
        self._update(there)
