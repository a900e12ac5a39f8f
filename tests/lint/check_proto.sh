#!/usr/bin/env bash
# buf's standard rules for the .proto files, with the exceptions that proto/buf.yaml explains. buf
# comes from PyPI into a virtual environment under build/; without PyPI: skipped (status 77).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/build/lint/buf
VERSION=1.75.0

skip() {
  printf 'skipped: %s\n' "$*"
  exit 77
}

install_buf() {
  local log=$ROOT/build/lint/buf.log
  mkdir -p "$ROOT/build/lint"
  python3 -m venv --clear "$VENV" >"$log" 2>&1 || skip "python3 -m venv fails: $(tail -n 1 "$log")"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --retries 1 "buf-bin==$VERSION" \
    >>"$log" 2>&1 || skip "buf-bin $VERSION cannot be had from PyPI: $(tail -n 1 "$log")"
}

is_installed() { [[ "$("$VENV/bin/buf" --version 2>/dev/null)" == "$VERSION" ]]; }

is_installed || install_buf
is_installed || skip "buf does not run on this machine"
(cd "$ROOT/proto" && "$VENV/bin/buf" lint .)
printf 'the .proto files follow the standard rules of buf %s\n' "$VERSION"
