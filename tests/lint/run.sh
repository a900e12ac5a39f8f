#!/usr/bin/env bash
# All checks of the text itself, or those named; --list prints their names. Each check exits with 0
# (passed), 77 (skipped, it said why) or anything else (failed).
#
#   tests/lint/run.sh [--list | NAME...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Cheapest first.
CHECKS=(lint_tests includes strings quotes comments sizes duplicates readme markdown commits shell format proto tidy)

check_lint_tests() {
  python3 -m unittest discover -q -s tests/lint -p 'test_*.py' &&
    python3 -m unittest discover -q -s tests -p 'test_*.py'
}
check_includes() { python3 tests/lint/check_includes.py; }
check_strings() { python3 tests/lint/check_strings.py; }
check_quotes() { python3 tests/lint/check_quotes.py; }
check_comments() { python3 tests/lint/check_comments.py; }
check_sizes() { python3 tests/lint/check_sizes.py; }
check_duplicates() { python3 tests/lint/check_duplicates.py; }
check_readme() { python3 tests/lint/check_readme.py; }
check_markdown() { python3 tests/lint/check_markdown.py; }
check_commits() { python3 tests/lint/check_commits.py; }
check_format() { tests/lint/check_format.sh; }
check_proto() { tests/lint/check_proto.sh; }
check_tidy() { tests/lint/check_tidy.sh; }
check_shell() {
  if ! command -v shellcheck >/dev/null; then
    echo "skipped: shellcheck is not installed"
    return 77
  fi
  # .ci/run has no suffix, so it is named.
  git ls-files -co --exclude-standard -z -- '*.sh' .ci/run | xargs -0 shellcheck -x -P SCRIPTDIR -P .
  echo "shell scripts are clean"
}

run_check() {
  local name=$1 start=$SECONDS status=0
  "check_$name" || status=$?
  case $status in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    *) verdict=failed ;;
  esac
  printf '%s: %s (%d s)\n' "$name" "$verdict" $((SECONDS - start))
}

if [[ "${1:-}" == --list ]]; then
  printf '%s\n' "${CHECKS[@]}"
  exit 0
fi

names=("${CHECKS[@]}")
if (($# > 0)); then names=("$@"); fi
failed=0 skipped=0
for name in "${names[@]}"; do
  if [[ " ${CHECKS[*]} " != *" $name "* ]]; then
    printf 'no check is called %s; there are: %s\n' "$name" "${CHECKS[*]}" >&2
    exit 2
  fi
  run_check "$name"
  if [[ $verdict == failed ]]; then failed=$((failed + 1)); fi
  if [[ $verdict == skipped ]]; then skipped=$((skipped + 1)); fi
done
if ((failed > 0)); then exit 1; fi
# One check asked for and not run: the caller is told so. Of several, the lines above tell.
if ((skipped > 0 && ${#names[@]} == 1)); then exit 77; fi
