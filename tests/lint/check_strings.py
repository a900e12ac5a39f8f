#!/usr/bin/env python3
"""No committed text may hold what is true on one machine only.

Home and working directories of people and machines, addresses of private networks, and the package
mirrors that this machine is set up with. Prints file:line and the text; exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

import sources

# The slash is apart, so that this file does not hold what it looks for.
FOLDERS = re.compile(r"(?<![\w.$})-])/(?:home|root|work|Users|mnt|media)/[\w.-]+")
PRIVATE_ADDRESS = re.compile(
    r"(?<![\d.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01])|169\.254)\.\d{1,3}\.\d{1,3}(?![\d.])")
# Hosts that everybody's machine may name.
PUBLIC_HOSTS = re.compile(r"(^|\.)(debian\.org|ubuntu\.com|pypi\.org|pythonhosted\.org|github\.com)$")
URL_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([\w.-]+)")
LARGEST_FILE = 1_000_000


def mirror_hosts():
    """Hosts of this machine's apt and pip settings, less the public ones."""
    hosts = set()
    settings = [pathlib.Path("/etc/apt/sources.list"), pathlib.Path("/etc/pip.conf")]
    settings += pathlib.Path("/etc/apt").glob("sources.list.d/*")
    for path in settings:
        try:
            hosts.update(URL_HOST.findall(path.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            pass
    return {host for host in hosts if not PUBLIC_HOSTS.search(host) and host != "localhost"}


def findings(text, hosts):
    """Pairs (line number, offending text)."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern in (FOLDERS, PRIVATE_ADDRESS):
            for match in pattern.finditer(line):
                yield number, match.group(0)
        for host in hosts:
            if host in line:
                yield number, host


def check_tree(root, hosts):
    messages = []
    for name in sources.files(root):
        path = pathlib.Path(root) / name
        if path.stat().st_size > LARGEST_FILE:
            continue
        data = path.read_bytes()
        if b"\0" in data:
            continue
        text = data.decode("utf-8", errors="replace")
        messages += [f"{name}:{number}: \"{found}\" belongs to one machine"
                     for number, found in findings(text, hosts)]
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    messages = check_tree(parser.parse_args().root, mirror_hosts())
    print("\n".join(messages) if messages else "no text belongs to one machine")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
