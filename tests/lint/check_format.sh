#!/usr/bin/env bash
# Every C++ file, tracked or new, is as clang-format 14 would write it. Other versions of the tool
# disagree with it here and there, so with them the check is skipped (status 77).
#
#   tests/lint/check_format.sh [--fix]
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

find_tool() {
  local tool
  for tool in clang-format-14 clang-format; do
    if "$tool" --version 2>/dev/null | grep -q 'version 14\.'; then
      printf '%s\n' "$tool"
      return 0
    fi
  done
  return 1
}

tool=$(find_tool) || {
  echo "skipped: clang-format 14 is not installed"
  exit 77
}
mode=(--dry-run -Werror)
if [[ "${1:-}" == --fix ]]; then mode=(-i); fi

cd "$ROOT"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
python3 -c 'import sys; sys.path.insert(0, "tests/lint"); import sources
print("\0".join(sources.cxx_files(".")), end="\0")' >"$list"
xargs -0 -r -n 40 -P "$(nproc)" "$tool" --style=file "${mode[@]}" <"$list"
printf '%d files are formatted\n' "$(tr -cd '\0' <"$list" | wc -c)"
