#!/usr/bin/env python3
"""The service beside its kernels, and its callers beside each other: see README.md."""

import argparse
import json
import math
import pathlib
import shlex
import sys

import measures
import programs

ROOT = pathlib.Path(__file__).resolve().parents[3]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", default=ROOT / "build/release/bin", help="folder of the programs")
    parser.add_argument("--seconds", type=float, default=5, help="of each run (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of runs in turns (3)")
    parser.add_argument("--only", help="measures, separated by commas: " + ", ".join(measures.ALL))
    parser.add_argument("--soak", type=float, nargs="?", const=600, default=None,
                        metavar="SECONDS", help="also the mixed load, for so long (600)")
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu",
                        help="of the servers, and whose kernels they are held against (cpu)")
    parser.add_argument("--rows", action="store_true",
                        help="print the rows again for the table of tests/gpu.sh")
    parser.add_argument("--server-flags", default="", metavar="FLAGS",
                        help="more flags for every server, in one argument")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    options.names = options.only.split(",") if options.only else list(measures.ALL)
    for name in options.names:
        if name not in measures.ALL:
            parser.error(f"--only names {name}, expected some of {', '.join(measures.ALL)}")
    if options.soak is None and "soak" in options.names:
        if options.only:
            options.soak = 600
        else:
            options.names.remove("soak")
    elif options.soak is not None and "soak" not in options.names:
        options.names.append("soak")
    return options


def print_row(row, others):
    value = f"{row.value:.2f} {row.unit}".rstrip()
    verdict = "" if not row.target() else "MISSED" if row.is_missed() else "met"
    print(f"{row.name:46} {value:>14} {row.target():>8} {verdict:6} {others:5.0%}  {row.detail}",
          flush=True)


def print_table_rows(records):
    for record in records:
        if "error" in record:
            print(f"row|FAILED|{record['measure']}|-|{record['error']}")
        else:
            value = "none" if record["value"] is None else f"{record['value']:.2f}"
            print(f"row|measured|{record['name']}|{value} {record['unit']}|{record['detail']}")


def main():
    options = parse_arguments()
    records = []
    print(f"{'':46} {'':14} {'target':>8} {'':6} others")
    with programs.programs_in(options.bin) as tools:
        tools.backend = options.backend
        tools.server_flags = [f"--backend={options.backend}", *shlex.split(options.server_flags)]
        for name in options.names:
            try:
                work = programs.OtherWork()
                rows = list(measures.ALL[name](tools, options))
                others = work.share()
                for row in rows:
                    print_row(row, others)
                    value = row.value if math.isfinite(row.value) else None
                    records.append({"measure": name, "name": row.name, "value": value,
                                    "unit": row.unit, "at_most": row.at_most,
                                    "at_least": row.at_least, "detail": row.detail,
                                    "others_share": others})
            except RuntimeError as error:
                print(f"{name}: {error}", flush=True)
                records.append({"measure": name, "error": str(error)})
    if options.rows:
        print_table_rows(records)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(records, indent=2) + "\n")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
