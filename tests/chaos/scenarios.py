"""The table of scenarios, which their modules fill."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Scenario:
    name: str
    run: Callable  # with the load's process
    is_long: bool  # not part of the short form

    @property
    def text(self):
        return self.run.__doc__.strip().splitlines()[0]


SCENARIOS = []


class Skipped(Exception):
    """A scenario that this machine does not allow, and why."""


def scenario(name, is_long=False):
    def register(run):
        SCENARIOS.append(Scenario(name, run, is_long))
        return run

    return register
