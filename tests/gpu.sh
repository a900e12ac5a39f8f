#!/usr/bin/env bash
# Everything that wants a GPU, in one command, on a machine that has one:
#
#   tests/gpu.sh [BUILD-DIR]      default build/cuda; carry a build there, or it is made
#
# Parity grid and bitwise promises on the device, a repetition of 1000 runs, the memory and race checkers where
# they are installed, the server end to end under load. On compute capability 9.0 prompts take its own kernel
# (kernels/cuda/sm90), elsewhere the generic one. Prints one table and exits with 1 if anything differs.
# Functions are called by name, which the checker does not see.
# shellcheck disable=SC2317
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=${1:-build/cuda}
logs=$(mktemp -d)
rows=()
failed=0

# check NAME COMMAND...: 0 passes, 77 skips (the last line says why), anything else fails.
check() {
  local name=$1 log status begin
  shift
  log=$logs/${name// /-}.log
  begin=$SECONDS
  "$@" >"$log" 2>&1
  status=$?
  case $status in
    0) rows+=("passed|$name|$((SECONDS - begin)) s|$(summary_of "$log")") ;;
    77) rows+=("skipped|$name|-|$(tail -n 1 "$log")") ;;
    *)
      rows+=("FAILED|$name|$((SECONDS - begin)) s|status $status, see $log")
      tail -n 30 "$log"
      failed=1
      ;;
  esac
}

summary_of() { grep -E '^(\[  PASSED|summary: )' "$1" | tail -n 1; }

need() {
  command -v "$1" >/dev/null && return 0
  echo "skipped: $1 is not installed"
  return 77
}

checker() {
  need compute-sanitizer || return
  compute-sanitizer --error-exitcode 1 --tool "$1" "$build/bin/tests/cuda_device_test" \
    --gtest_filter='CudaDeviceTest.SmallShapes'
}

# The server under load, each answer checked against float64 by the load generator.
end_to_end() {
  local ports=$logs/ports.json server status
  "$build/bin/attention-server" --backend cuda --listen 127.0.0.1:0 --admin-listen '' --port-file "$ports" &
  server=$!
  for _ in $(seq 100); do
    if [[ -s $ports ]]; then break; fi
    sleep 0.1
  done
  local target
  target=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["listen"][0])' "$ports") || {
    kill "$server"
    return 1
  }
  "$build/bin/attention-loadgen" --target "$target" --workload mixed --duration 10s --verify 1.0
  status=$?
  kill "$server"
  wait "$server"
  return "$status"
}

if [[ ! -x $build/bin/tests/cuda_device_test ]]; then
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATTENTION_CUDA=REQUIRED &&
    cmake --build "$build" --target cuda_device_test attention-server attention-loadgen || exit 1
fi

check "parity and bits" "$build/bin/tests/cuda_device_test" --gtest_filter='-*Repeat*'
check "1000 repetitions" "$build/bin/tests/cuda_device_test" --gtest_filter='*Repeat*'
check "memcheck" checker memcheck
check "racecheck" checker racecheck
check "server end to end" end_to_end

printf '%s\n' "${rows[@]}" | column -t -s '|'
exit "$failed"
