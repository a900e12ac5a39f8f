#!/usr/bin/env bash
# Everything that can be tested without an accelerator, from a machine with nothing but a compiler.
#
# Installs what is missing, builds, runs all stages to the end even when one fails, and ends with one
# line "N passed, N failed, N skipped" that counts ctest tests and scripts. Fails if anything failed.
# A second run builds only what changed.
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib.sh"

LOG_DIR="$REPOSITORY_ROOT/build/test-logs"

export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-second_deadlock_stack=1:history_size=4:exitcode=66}

usage() {
  cat <<'USAGE'
usage: tests/run.sh [options]

  --quick             release build, unit and parity tests only
  --no-container      leave the container test out
  --bare-quickstart   also run deploy/quickstart.sh in a bare Debian root (needs root; minutes)
  --no-install        do not install packages
  --help              this text

Stages: packages, lint, release build and all its tests, address and undefined-behaviour sanitizers,
thread sanitizer, every tests/*/run.sh (a server under abuse, the pages' commands, installation, Python
client), examples, container.
USAGE
}

parse_arguments() {
  is_quick=false with_container=true with_bare_quickstart=false
  while (($# > 0)); do
    case $1 in
      --quick) is_quick=true ;;
      --no-container) with_container=false ;;
      --bare-quickstart) with_bare_quickstart=true ;;
      --no-install) export ATTENTION_NO_INSTALL=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      *)
        usage >&2
        die "unknown option $1"
        ;;
    esac
    shift
  done
}

# A translation unit with gRPC's headers takes above a gigabyte: as many at once as memory allows.
set_parallelism() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemAvailable:/ {print int($2 / 1500000)}' /proc/meminfo)
  export CMAKE_BUILD_PARALLEL_LEVEL=$((memory < 1 ? 1 : memory < cores ? memory : cores))
}

# --- What was found -------------------------------------------------------------------------------

passed=0 failed=0 skipped=0
findings=()         # lines of the closing table
stages=()           # of the table of times
reports=()          # ctest's
ctest_command=(ctest) # and what it is run under

record() {
  local verdict=$1 name=$2
  case $verdict in
    passed) passed=$((passed + 1)) ;;
    failed) failed=$((failed + 1)) ;;
    skipped) skipped=$((skipped + 1)) ;;
  esac
  findings+=("$(printf '%-8s %s' "$verdict" "$name")")
}

# clocked NAME COMMAND...: timed, and a line in the table of times.
clocked() {
  local clocked_start clocked_ticks clocked_status=0
  clocked_start=$(now_ms) clocked_ticks=$(children_ticks)
  timed "$@" || clocked_status=$?
  stages+=("$(printf '%8d %9d  %s' $((($(now_ms) - clocked_start) / 1000)) \
    $((($(children_ticks) - clocked_ticks) / $(getconf CLK_TCK))) "$1")")
  return "$clocked_status"
}

# Processor time of all children of this script that have ended.
children_ticks() {
  local fields
  read -r -a fields <"/proc/$$/stat"
  echo $((fields[15] + fields[16]))
}

# A build or an installation is no test: it counts only when it fails.
run_step() {
  local name=$1
  if clocked "$@"; then return 0; fi
  record failed "$name"
  return 1
}

# run_script NAME COMMAND...: one test. It tells that it could not run by status 77 or by a last line
# "skipped: reason".
run_script() {
  local name=$1 log status=0
  log=$LOG_DIR/${name//[^[:alnum:]]/-}.log
  clocked "$@" > >(tee "$log") 2>&1 || status=$?
  wait $! 2>/dev/null || true # tee's end: the log is complete
  if ((status == 77)) || { ((status == 0)) && tail_of "$log" | grep -q '^skipped: '; }; then
    record skipped "$name: $(grep -o '^skipped: .*' "$log" | tail -n 1 | cut -d' ' -f2-)"
  elif ((status == 0)); then
    record passed "$name"
  else
    record failed "$name (status $status, $log)"
  fi
}

# The last line that is the script's, not timed's.
tail_of() { grep -v '<== ' "$1" | sed '/^[[:space:]]*$/d' | tail -n 1; }

# run_ctest NAME BUILD-DIR CTEST-ARGUMENT...: counts each test.
run_ctest() {
  local name=$1 build_dir=$2 report status=0
  shift 2
  report=$LOG_DIR/${name//[^[:alnum:]]/-}.xml
  rm -f "$report"
  reports+=("$report")
  clocked "$name" "${ctest_command[@]}" --test-dir "$build_dir" --no-tests=error --output-on-failure \
    --output-junit "$report" "$@" || status=$?
  count_ctest "$name" "$report" "$status"
}

count_ctest() {
  local name=$1 report=$2 status=$3 all=0 bad=0 not_run=0
  if [[ -f "$report" ]]; then
    read -r all bad not_run < <(junit_counts "$report")
  fi
  # A status without a failed test: ctest itself could not do it.
  if ((status != 0 && bad == 0)); then bad=1 all=$((all + 1)); fi
  passed=$((passed + all - bad - not_run)) failed=$((failed + bad)) skipped=$((skipped + not_run))
  findings+=("$(printf '%-8s %s: %d passed, %d failed, %d skipped' \
    "$( ((bad == 0)) && echo passed || echo failed)" "$name" $((all - bad - not_run)) "$bad" "$not_run")")
}

# "tests failures skipped" of a JUnit report's first element.
junit_counts() {
  python3 - "$1" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot()
number = lambda key: int(suite.get(key, 0))
print(number("tests"), number("failures"), number("skipped") + number("disabled"))
PYTHON
}

# --- Stages ---------------------------------------------------------------------------------------

install_packages() {
  ensure_packages "$REPOSITORY_ROOT/deploy/packages-build.txt" \
    "$REPOSITORY_ROOT/deploy/packages-test.txt"
}

# configure PRESET. A new build folder is one for a build that is made once; that of somebody who goes on to change
# files keeps its options.
configure() {
  local options=(-DATTENTION_BUILD_TESTS=ON)
  # Device code is only compiled here: for the oldest architecture, and for 9.0 by tests/cuda/check_resources.py.
  if [[ ! -f "build/$1/CMakeCache.txt" ]]; then
    options+=(-DATTENTION_UNITY=ON -DATTENTION_WERROR=ON -DATTENTION_CUDA_ARCHITECTURES=80-real)
  fi
  # No tests of the sanitizers use CUDA.
  if [[ $1 != release ]]; then options+=(-DATTENTION_CUDA=OFF); fi
  cmake --preset "$1" "${options[@]}" >"$LOG_DIR/configure-$1.log" 2>&1 || {
    tail -n 30 "$LOG_DIR/configure-$1.log"
    return 1
  }
}

# build PRESET [TARGET]. A log gets no line for each file; a terminal gets one that changes.
build() {
  local quiet=(-- --quiet)
  if [[ -t 1 ]]; then quiet=(); fi
  configure "$1" && cmake --build "build/$1" ${2:+--target "$2"} "${quiet[@]}"
}

run_lint() {
  local check
  for check in $(tests/lint/run.sh --list); do
    run_script "lint $check" tests/lint/run.sh "$check"
  done
}

run_release() {
  if $is_quick; then
    run_step "Build release" build release attention_quick_tests || return 0
    run_ctest "Unit and parity tests" build/release -j "$(nproc)" -L '^(unit|parity)$'
    return 0
  fi
  run_step "Build release" build release || return 0
  run_ctest "Tests of one room" build/release -j "$(nproc)" -LE '^(integration|soak)$'
  run_ctest "Integration tests" build/release -j "$(nproc)" -L '^integration$'
}

run_asan() {
  run_step "Build asan" build asan attention_asan_tests || return 0
  run_ctest "Address and undefined-behaviour sanitizers" build/asan -j "$(nproc)" -L '^asan$'
}

run_tsan() {
  run_step "Build tsan" build tsan attention_tsan_tests || return 0
  # Its shadow memory has a fixed place, which newer kernels' address randomization may take. The
  # tests inherit the setting from ctest.
  if setarch -R true 2>/dev/null; then ctest_command=(setarch -R ctest); fi
  run_ctest "Thread sanitizer" build/tsan -L '^tsan$'
  ctest_command=(ctest)
}

run_scripts() {
  local script room
  for script in tests/*/run.sh; do
    room=$(basename "$(dirname "$script")")
    case $room in
      lint | container) ;; # stages of their own
      *) run_script "$room" "$script" ;;
    esac
  done
  run_script "examples" tests/interop/run_examples.sh
}

run_container() {
  if ! $with_container; then
    record skipped "container: --no-container"
    return 0
  fi
  run_script container tests/container/run.sh
}

print_times() {
  local files=() file
  for file in build/{release,asan,tsan}/.ninja_log "${reports[@]}"; do
    if [[ -f "$file" ]]; then files+=("$file"); fi
  done
  heading "Where the time went"
  say " seconds processor"
  say "$(printf '%s\n' "${stages[@]}")"
  say "$(python3 tests/slowest.py "${files[@]}")"
}

print_summary() {
  heading "Results"
  say "$(printf '%s\n' "${findings[@]}")"
  say "in all: $(seconds_since "$1") s"
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
}

main() {
  parse_arguments "$@"
  local start
  start=$(now_ms)
  cd "$REPOSITORY_ROOT"
  mkdir -p "$LOG_DIR"
  set_parallelism
  run_step "Packages" install_packages || true
  if $is_quick; then
    run_release
  else
    # Release first: the checks of the text read its list of compile commands.
    run_release
    run_lint
    run_asan
    run_tsan
    run_scripts
    run_container
    if $with_bare_quickstart; then run_script "bare quickstart" tests/container/bare_quickstart.sh; fi
  fi
  print_times
  print_summary "$start"
  ((failed == 0))
}

main "$@"
