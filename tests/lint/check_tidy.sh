#!/usr/bin/env bash
# clang-tidy 14 with the checks of .clang-tidy.
#
#   tests/lint/check_tidy.sh             the rooms where a mistake costs most, and no gRPC header has
#                                        to be parsed: kernels/{base,api}, server/{base,domain,cache,
#                                        session,scheduler,engine}
#   tests/lint/check_tidy.sh --all       every source of kernels/, server/ and client/ (minutes)
#   tests/lint/check_tidy.sh --base REV  of those, what differs from REV
#
# A file that passed is not looked at again before it, a header of ours or the checks change.
# Exits with 77 after "skipped: ..." where clang-tidy 14 or the build's command list is missing.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DEFAULT_ROOMS='^(kernels/(base|api)|server/(base|domain|cache|session|scheduler|engine))/'
ALL_ROOMS='^(kernels|server|client)/'
STAMPS=$ROOT/build/lint/tidy

skip() {
  printf 'skipped: %s\n' "$*"
  exit 77
}

find_tool() {
  local tool
  for tool in clang-tidy-14 clang-tidy; do
    if "$tool" --version 2>/dev/null | grep -q 'version 14\.'; then
      printf '%s\n' "$tool"
      return 0
    fi
  done
  return 1
}

# The commands of the release build for each file alone, less what belongs to g++'s precompiled headers. What the
# build generates lies in its folder.
write_commands() {
  local folder=$ROOT/build/lint/commands release=$ROOT/build/release
  [[ -f "$release/CMakeCache.txt" ]] || skip "build/release is not configured (cmake --preset release)"
  (cd "$ROOT" && cmake --preset release -B "$folder" -DATTENTION_CUDA=OFF -DATTENTION_UNITY=OFF) >/dev/null
  mkdir -p "$STAMPS"
  sed -E -e 's#-Winvalid-pch ##g; s#-include [^ ]*cmake_pch\.hxx ##g' -e "s#$folder#$release#g" \
    "$folder/compile_commands.json" >"$STAMPS/compile_commands.json"
}

sources() { git -C "$ROOT" ls-files -co --exclude-standard -- '*.cc' | sort -u; }

changed_since() {
  {
    git -C "$ROOT" diff --name-only "$1" -- '*.cc'
    git -C "$ROOT" ls-files -o --exclude-standard -- '*.cc'
  } | sort -u
}

selected() {
  case ${1:-} in
    --all) sources | grep -E "$ALL_ROOMS" ;;
    --base) comm -12 <(sources) <(changed_since "$2") | grep -E "$ALL_ROOMS" || true ;;
    *) sources | grep -E "$DEFAULT_ROOMS" ;;
  esac
}

# Files that a verdict on any file depends on, beside the file itself.
surroundings() {
  (cd "$ROOT" && git ls-files -co --exclude-standard -z -- .clang-tidy '*.h' | xargs -0 cat | sha256sum)
}

check_one() {
  local file=$1 stamp extra=(--extra-arg=-Wno-unknown-warning-option)
  # clang 14 knows _Float16 on x86 only where the processor computes with it; nothing is run here.
  if [[ "$(uname -m)" == x86_64 ]]; then extra+=(--extra-arg=-mavx512fp16); fi
  stamp=$STAMPS/${file//\//_}.passed
  if [[ "$(cat "$stamp" 2>/dev/null)" == "$(stamp_of "$file")" ]]; then return 0; fi
  if ! grep -q "\"file\": \"$ROOT/$file\"" "$STAMPS/compile_commands.json"; then
    printf 'not part of the release build, not checked: %s\n' "$file"
    return 0
  fi
  if ! "$TOOL" --quiet -p "$STAMPS" "${extra[@]}" "$ROOT/$file" 2>"$stamp.log"; then
    grep -vE '^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header' "$stamp.log" || true
    return 1
  fi
  stamp_of "$file" >"$stamp"
}

stamp_of() { sha256sum <"$ROOT/$1" | tr -d '\n' && printf '%s' "$SURROUNDINGS"; }

main() {
  TOOL=$(find_tool) || skip "clang-tidy 14 is not installed"
  write_commands
  SURROUNDINGS=$(surroundings)
  export ROOT STAMPS TOOL SURROUNDINGS
  export -f check_one stamp_of
  local count
  count=$(selected "$@" | wc -l)
  # shellcheck disable=SC2016  # $1 is the inner shell's
  selected "$@" | xargs -r -d '\n' -n 1 -P "$(nproc)" bash -c 'check_one "$1"' _
  printf '%d files are tidy\n' "$count"
}

main "$@"
