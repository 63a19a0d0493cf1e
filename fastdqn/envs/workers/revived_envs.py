"""The environments of a worker that was restarted: built anew, they may go on where they were.

An open episode is played again in private memory, since the caller reads the block meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.workers.failures import Answer, EnvFailures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.origins import Origins, known_in
from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = ["Past", "RevivedEnvs"]


@dataclass(frozen=True)
class Past:
    """The open episodes of some environments whose worker has ended.

    Attributes:
        origin: [M, 8] what each began from, see `origins`.
        actions: By environment, as it took them, those that it did not take left out.
        obs: [M, *O] what each showed last.
        action_mask: [M, A] what might be done then.
        seeds: Of the last reset with a seed, or None.
        limit_s: Seconds that playing them again may take.
    """

    origin: Origins
    actions: list[npt.NDArray[np.int64]]
    obs: npt.NDArray[Any]
    action_mask: npt.NDArray[np.bool_]
    seeds: list[int | None]
    limit_s: float


class RevivedEnvs(HostedEnvs):
    """Environments of a worker process; see `HostedEnvs`."""

    def revive(
        self, attributes: dict[str, list[Any]], seeds: list[int | None], past: Past | None = None
    ) -> Answer:
        """Build the environments of a worker that was restarted, and reset them.

        Args:
            attributes: Set before.
            seeds: Of the new episodes.
            past: Open episodes that go on where playing them again leads to what was shown last.

        Raises:
            EnvFailures: Some environments raised.
        """
        self.make()
        for name, values in attributes.items():
            self.set_attr(name, values)
        go_on = [False] * len(seeds) if past is None else self._played_again(past)
        return self.reset(seeds, None, [not each for each in go_on])

    def _played_again(self, past: Past) -> list[bool]:
        """Play open episodes again; return which environments go on with theirs."""
        again = Again(self, past)
        again.play(time.monotonic() + past.limit_s)
        for i in np.flatnonzero(again.same).tolist():
            self._take_over(i, again.host, past)
        return [bool(each) for each in again.same]

    def _take_over(self, i: int, host: HostedEnvs, past: Past) -> None:
        """Go on with an episode that was played again."""
        rows, played = self.rows, host.rows
        rows.obs[i], rows.action_mask[i] = played.obs[i], played.action_mask[i]
        rows.origin[i] = past.origin[i]
        self.returns[i], self.lengths[i] = host.returns[i], host.lengths[i]


class Again:
    """Plays open episodes again, all from their beginnings, side by side.

    Args:
        envs: Whose environments they are.
        past: The episodes.

    Attributes:
        host: Steps the same environments into private rows.
        same: [M] bool, whose episodes can go on; false once something speaks against it.
    """

    def __init__(self, envs: HostedEnvs, past: Past) -> None:
        count = envs.num_envs
        spec = replace(envs.settings.spec, num_envs=count)
        settings, fns = replace(envs.settings, spec=spec), envs.env_fns
        self.host = HostedEnvs(settings, (0, count), fns, SharedBlock.allocate(spec), envs.permit)
        self.host.take_envs(envs.envs)
        self.past = past
        self.same = np.array([known_in(past.origin, i) is not None for i in range(count)])

    def play(self, until: float) -> None:
        """Play until the end, or until a time of `time.monotonic`."""
        rows, past = self.host.rows, self.past
        self._try(lambda: self.host.reset(past.seeds, None, self.same.tolist(), past.origin))
        lengths = np.array([len(actions) for actions in past.actions])
        for step in range(int(lengths[self.same].max(initial=0))):
            if time.monotonic() > until:
                self.same &= lengths <= step
                break
            going = self.same & (lengths > step)
            rows.resting[:] = ~going
            for i in np.flatnonzero(going).tolist():
                rows.action[i] = past.actions[i][step]
            self._try(self.host.step)
            self.same &= ~(going & (rows.terminated | rows.truncated))
        shown = ((rows.obs, past.obs), (rows.action_mask, past.action_mask))
        for here, there in shown:
            self.same &= [a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)]

    def _try(self, call: Any) -> None:
        """Call; environments that raise do not go on, and are built anew by the next reset."""
        try:
            call()
        except EnvFailures as error:
            self.same[[failure.env for failure in error.failures]] = False
