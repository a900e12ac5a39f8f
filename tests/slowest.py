#!/usr/bin/env python3
"""The slowest translation units and tests of a run, from the files that ninja and ctest leave behind.

  tests/slowest.py [--count N] FILE...    .ninja_log of build folders, and JUnit reports of ctest

A unit counts as it was last compiled; one that came from a compiler cache is as fast as the cache was.
"""

import argparse
import pathlib
import sys
import xml.etree.ElementTree

OBJECT_SUFFIXES = (".o", ".gch")


def build_steps(log):
    """Seconds by output, of a .ninja_log: its last entry for each output that still exists."""
    seconds = {}
    for line in log.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) == 5 and (log.parent / fields[3]).exists():
            seconds[fields[3]] = (int(fields[1]) - int(fields[0])) / 1000
    return seconds


def unit_name(log, output):
    """build/release and kernels/CMakeFiles/x.dir/cpu/plan.cc.o make "release: kernels x cpu/plan.cc"."""
    folder, _, rest = output.partition("CMakeFiles/")
    target, _, source = rest.partition(".dir/")
    if not source:
        return f"{log.parent.name}: {output}"
    source = source.removesuffix(".o").replace("__/", "../")
    return f"{log.parent.name}: {folder.rstrip('/')} {target} {source}"


def test_cases(report):
    """Pairs (seconds, name) of a JUnit report."""
    for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
        yield float(case.get("time") or 0), f"{report.stem}: {case.get('name')}"


def table(title, rows, count):
    lines = [f"{title}, in seconds:"]
    lines += [f"{seconds:9.1f}  {name}" for seconds, name in sorted(rows, reverse=True)[:count]]
    return lines if rows else []


def summaries(log, steps):
    objects = [seconds for output, seconds in steps.items() if output.endswith(OBJECT_SUFFIXES)]
    others = sum(steps.values()) - sum(objects)
    return f"{log.parent.name}: {len(objects)} translation units {sum(objects):.0f} s, links and the rest {others:.0f} s"


def report(files, count):
    """Lines of text."""
    units, cases, lines = [], [], []
    for file in map(pathlib.Path, files):
        if file.suffix == ".xml":
            cases += test_cases(file)
            continue
        steps = build_steps(file)
        lines.append(summaries(file, steps))
        units += [(seconds, unit_name(file, output)) for output, seconds in steps.items()
                  if output.endswith(OBJECT_SUFFIXES)]
    return lines + table("slowest translation units", units, count) + table("slowest tests", cases, count)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_args()
    print("\n".join(report(arguments.files, arguments.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
