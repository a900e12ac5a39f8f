#!/usr/bin/env bash
# runtime-packages.sh BINARY...: the Debian packages that own the shared libraries the binaries load.
#
# The image installs exactly these: a list kept by hand goes stale when a room takes a new library,
# and says so only when the container starts.
set -euo pipefail

# owner LIBRARY: the package's name. dpkg knows some libraries as /lib/..., others as /usr/lib/...,
# though both are the same file.
owner() {
  local path real
  real=$(readlink -f "$1")
  for path in "$1" "$real" "${real#/usr}" "/usr$1"; do
    if dpkg-query -S "$path" 2>/dev/null | head -n 1 | cut -d: -f1 | grep .; then return 0; fi
  done
  printf 'no package owns %s\n' "$1" >&2
  return 1
}

libraries() { ldd "$@" | sed -nE 's/.*=> (\/[^ ]+).*/\1/p' | sort -u; }

if ldd "$@" | grep 'not found' >&2; then exit 1; fi
libraries "$@" | while read -r library; do owner "$library"; done | sort -u
