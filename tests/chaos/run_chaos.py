"""Runs the scenarios one after another and prints a line for each. Called by run.sh.

    run_chaos.py [--long [MINUTES]] [--list] [NAME...]
"""

import argparse
import signal
import sys
import time
import traceback

# Each fills the table.
import allocations  # noqa: F401
import connections  # noqa: F401
import credentials  # noqa: F401
import lifecycle  # noqa: F401
import memory  # noqa: F401
import sessions  # noqa: F401
import streams  # noqa: F401
import tenants  # noqa: F401
from scenarios import SCENARIOS, Skipped
from server import Load

TIME_LIMIT_SECONDS = 120  # of a scenario


def stop(number, _):
    """Unwinds through the servers' context managers, so that nothing is left running."""
    raise TimeoutError(f"stopped by {signal.Signals(number).name}; a scenario may take {TIME_LIMIT_SECONDS} s")


def run(scenario, load):
    """"passed", "skipped" or "failed", and a line that says why."""
    signal.alarm(TIME_LIMIT_SECONDS)
    try:
        scenario.run(load)
    except Skipped as reason:
        return "skipped", str(reason)
    except Exception as error:
        if not isinstance(error, (AssertionError, TimeoutError)) and type(error).__name__ != "Failure":
            traceback.print_exc()
        return "failed", str(error) or type(error).__name__
    finally:
        signal.alarm(0)
    return "passed", ""


def run_all(scenarios):
    verdicts = []
    load = Load()
    for scenario in scenarios:
        start = time.monotonic()
        verdict, reason = run(scenario, load)
        verdicts.append(verdict)
        print(f"{verdict:8} {scenario.name} ({time.monotonic() - start:.1f} s)", *filter(None, [reason]), flush=True)
        if verdict == "failed":  # it may still be calling a server that is gone
            load.end()
            load = Load()
    load.end()
    return verdicts


def choose(names, is_long):
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        sys.exit(f"no scenario is called {', '.join(sorted(unknown))}; --list names them")
    if names:
        return [scenario for scenario in SCENARIOS if scenario.name in names]
    return [scenario for scenario in SCENARIOS if is_long or not scenario.is_long]


def main():
    parser = argparse.ArgumentParser(prog="tests/chaos/run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--long", nargs="?", type=float, const=30, metavar="MINUTES",
                        help="all scenarios, again and again for so long (30)")
    parser.add_argument("--list", action="store_true", help="print the scenarios and what each is")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{each.name}{' (long)' if each.is_long else ''}: {each.text}" for each in SCENARIOS))
        return 0
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, stop)
    scenarios = choose(arguments.names, arguments.long is not None)
    end = time.monotonic() + 60 * (arguments.long or 0)
    verdicts = run_all(scenarios)
    while arguments.long is not None and time.monotonic() < end and "failed" not in verdicts:
        verdicts += run_all(scenarios)
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("passed", "failed", "skipped")))
    return 1 if "failed" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
