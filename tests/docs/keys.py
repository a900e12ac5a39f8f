"""Compares the keys of docs/configuration.md with the flags of the server: each has a row there, and no other.

    keys.py ATTENTION-SERVER
"""

import pathlib
import re
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NO_KEYS = {"help", "config", "print-config", "new-token", "version"}  # about the configuration, not of it


def documented():
    page = (REPOSITORY / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([a-z-]+)`", row)}


def known(server):
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^ +(?:-\w,)?--([a-z-]+)", text, re.MULTILINE)) - NO_KEYS


def main():
    in_page, in_server = documented(), known(sys.argv[1])
    if in_page == in_server:
        return 0
    print(f"docs/configuration.md lacks: {sorted(in_server - in_page)}; no flags: {sorted(in_page - in_server)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
