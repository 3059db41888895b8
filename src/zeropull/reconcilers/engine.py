"""What carries out plans: it launches and ends instances, runs and stops copies, and looks.

Terms:

- An *instance* is room for copies: a machine, or what stands for one. The plan names it
  (`instance_id`), and the engine provides it.
- A *copy* is one running container of a variant or of a component's version. The plan names it
  (`copy_id`) and says what it runs; how its container comes to run is the engine's matter.

Life of an instance: `launch` -> observed -> `terminate`. Life of a copy: it stands in the view that
`run_copies` gets with the intent RUN, is observed as it becomes healthy, gets the intent STOP, is
observed as stopped.

An engine keeps no truth of its own. Whatever it is told may be told again, after a crash at any
point, with the same arguments, and then it finishes the work. `list_instances` and `observe` say
what is really there, so that a new control plane adopts what an earlier one began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from zeropull.controlapi.messages import CopyReport
from zeropull.reconcilers.endpoint_view import View
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import AttachedVolume, Instance


@dataclass(frozen=True, slots=True)
class Launched:
    """`accelerators`: device names that the instance may give to its copies. `volumes`: the
    generations of the image cache that it has, with their paths as it sees them."""

    address: str | None = None
    accelerators: tuple[str, ...] = ()
    volumes: tuple[AttachedVolume, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """What an instance said of itself last, and when: `heard_s` by the monotonic clock.

    `copies` by copy ID. `stopped`: copies of which nothing is left. `images`: manifest digests of
    images from which a copy can start without a registry.
    """

    heard_s: float
    copies: Mapping[str, CopyReport] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()


class Engine(Protocol):
    """Carries out the plans of every endpoint. Every method may be called again at any time."""

    async def prepare(self, endpoint: Endpoint) -> None:
        """Make reachable what the endpoint's copies need: called before a launch and from time to
        time, since components may come to need more."""

    async def launch(self, endpoint: Endpoint, instance: Instance) -> Launched:
        """Provide the instance; returns once it can be told what to run.

        Raises:
            NoCapacity: it cannot be had now; nothing is left behind.
        """

    async def terminate(self, instance_id: str) -> None:
        """End everything of the instance; returns when nothing of it is left. Idempotent."""

    async def list_instances(self) -> frozenset[str]:
        """IDs of all that are really there, whoever launched them."""

    async def heal(self, instance_id: str) -> bool:
        """Mend the instance if part of it has died; True when something was mended.

        Raises:
            NotFound: nothing of it is there.
        """

    def run_copies(self, view: View, now_s: float) -> None:
        """Have the copies of one endpoint run and stop as the view says. Returns at once."""

    def take_changed(self) -> set[str]:
        """Instances of which `observe` may say something new since the last call, other than when
        they were heard of."""

    def heard_s(self, instance_id: str) -> float | None:
        """When the instance was heard of last, by the monotonic clock; None: never."""

    def observe(self, instance_id: str) -> Observed | None:
        """What is known of the instance now; None when it has never been heard of."""
