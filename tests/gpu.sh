#!/usr/bin/env bash
# Everything that wants a GPU, in one command, on a machine that has one:
#
#   tests/gpu.sh [--dry-run] [BUILD]     a build's folder, or a packed one; default build/cuda, made if it is not there
#   tests/gpu.sh --pack FILE [BUILD]     packs what this script needs of a build, with the libraries that it links
#                                        (tar.gz), to be carried to a machine that has none of them
#
# Parity grid and bitwise promises on the device, a repetition of 1000 runs, the memory and race checkers where
# they are installed, the server end to end under load; then how fast it is: kernels in the GPU's own time, beside
# torch and others where they are installed, and the service and a step's latency over the kernels. On compute
# capability 9.0 prefill takes its own kernel (kernels/cuda/kernels/sm90), elsewhere the generic one.
#
# Prints one table and exits with 1 if a result differs, never for a time; with 77 where there is no GPU. --dry-run
# prints what would run.
# ATTENTION_GPU_SECONDS bounds the kernels' part (180); with it the whole fits into ten minutes.
# Functions are called by name, which the checker does not see.
# shellcheck disable=SC2317
set -uo pipefail

usage() { sed -n '2,/^# Functions/{/^# Functions/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

is_dry=false
pack=
while (($# > 0)); do
  case $1 in
    --dry-run) is_dry=true ;;
    --pack)
      pack=$(realpath -m "${2:?--pack wants a file}")
      shift
      ;;
    --help | -h) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) break ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=${1:-build/cuda}
seconds=${ATTENTION_GPU_SECONDS:-180}
targets=(cuda_device_test attention-server attention-loadgen attention-bench-cuda attention_bench_cuda
  attention-bench-transport)
programs=(bin/tests/cuda_device_test bin/attention-server bin/attention-loadgen bin/attention-bench-cuda
  bin/attention-bench-transport)
libraries=(lib/libattention_cuda.so lib/libattention_bench_cuda.so)
rows=()
failed=0

make_build() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATTENTION_CUDA=REQUIRED &&
    cmake --build "$build" --target "${targets[@]}"
}

# --- Packing --------------------------------------------------------------------------------------

# The shared libraries of programs, but for those that every system has its own of.
closure_of() {
  ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(ld-linux|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))[.-]'
}

# Python loads the benchmark's library and must not find another libcrypto through it: its libraries lie in lib/,
# those of programs in system/.
pack_build() {
  local folder=$logs/build file
  mkdir -p "$folder"/bin/tests "$folder"/lib "$folder"/system
  for file in "${programs[@]}" "${libraries[@]}"; do
    strip -o "$folder/$file" "$build/$file" || return 1
  done
  chmod +x "$folder"/bin/attention-* "$folder"/bin/tests/*
  closure_of "${libraries[@]/#/$build/}" | xargs cp -Lt "$folder/lib"
  closure_of "${programs[@]/#/$build/}" | xargs cp -Lt "$folder/system"
  # Libraries that both folders have need not travel twice.
  for file in "$folder"/lib/*; do rm -f "$folder/system/$(basename "$file")"; done
  tar -czf "$pack" -C "$folder" . || return 1
  echo "$(du -m "$pack" | cut -f1) MiB; there: tests/gpu.sh $(basename "$pack")"
}

# --- Checks ---------------------------------------------------------------------------------------

# check NAME COMMAND...: 0 passes, 77 skips (the last line says why), anything else fails. Lines "row|..." of its
# output become rows of the table.
check() {
  local name=$1 log status begin
  shift
  if $is_dry; then
    rows+=("would run|$name|-|$("$@" | tail -n 1)")
    return
  fi
  log=$logs/${name// /-}.log
  begin=$SECONDS
  "$@" >"$log" 2>&1
  status=$?
  case $status in
    0)
      rows+=("passed|$name|$((SECONDS - begin)) s|$(summary_of "$log")")
      mapfile -t -O "${#rows[@]}" rows < <(sed -n 's/^\(skipped\|peer\): \(.*\)/\1|\2|-|-/p' "$log")
      ;;
    77) rows+=("skipped|$name|-|$(grep '^skipped: ' "$log" | tail -n 1)") ;;
    *)
      rows+=("FAILED|$name|$((SECONDS - begin)) s|status $status, see $log")
      tail -n 30 "$log"
      failed=1
      ;;
  esac
  mapfile -t -O "${#rows[@]}" rows < <(sed -n 's/^row|//p' "$log")
}

summary_of() { grep -E '^(\[  PASSED|summary: |on )' "$1" | tail -n 1; }

# run COMMAND...: every command of a check.
run() { if $is_dry; then echo "$*"; else "$@"; fi; }

# bounded SECONDS COMMAND...: what only takes longer than there is time for has not failed.
bounded() {
  local status=0
  run timeout "$@" || status=$?
  if ((status != 124)); then return "$status"; fi
  echo "skipped: stopped after $1 s"
  return 77
}

device_test() { run "$build/bin/tests/cuda_device_test" "$@"; }

need() {
  if $is_dry || command -v "$1" >/dev/null; then return 0; fi
  echo "skipped: $1 is not installed"
  return 77
}

# checker TOOL FILTER
checker() {
  need compute-sanitizer || return
  bounded 60 compute-sanitizer --error-exitcode 1 --tool "$1" "$build/bin/tests/cuda_device_test" \
    --gtest_filter="$2"
}

# The server under load, each answer checked against float64 by the load generator.
end_to_end() {
  local ports=$logs/ports.json server status target=
  # Small shapes: it is the client that computes in float64.
  local load=(timeout 90 "$build/bin/attention-loadgen" --workload mixed --concurrency 12 --q-len 64 --context 200
    --decode-tokens 64 --duration 5s --verify 1.0)
  if $is_dry; then
    run "${load[@]}"
    return
  fi
  "$build/bin/attention-server" --backend cuda --listen 127.0.0.1:0 --admin-listen '' --port-file "$ports" &
  server=$!
  for _ in $(seq 300); do
    if [[ -s $ports ]]; then break; fi
    sleep 0.1
  done
  target=$(grep -oE '127\.0\.0\.1:[0-9]+' "$ports" 2>/dev/null | head -n 1)
  if [[ -z $target ]]; then
    kill "$server"
    return 1
  fi
  "${load[@]}" --target "$target"
  status=$?
  kill "$server"
  wait "$server"
  return "$status"
}

has_torch() { command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; }

# With peers where python3 has torch, else the kernels alone.
kernel_times() {
  local options=(--max-seconds "$seconds" --json "$logs/kernels.json")
  if has_torch; then
    run env "LD_LIBRARY_PATH=$build/lib${own_path:+:$own_path}" python3 tests/benchmark/cuda/peers.py \
      --library "$build/lib/libattention_bench_cuda.so" "${options[@]}"
  else
    run "$build/bin/attention-bench-cuda" "${options[@]}" --note "skipped: peers: no python3 with torch"
  fi
}

# A figure beyond its target is no failure here.
service_times() {
  need python3 || return
  bounded 90 python3 tests/benchmark/service/service_bench.py --bin "$build/bin" --backend cuda --rounds 1 \
    --seconds 2 --rows --only decode-efficiency,step-latency
}

# Echoes beside the server with a GPU, by each socket.
transport_times() {
  bounded 45 "$build/bin/attention-bench-transport" --backend cuda --filter layer/ --rounds 3 --seconds 0.5 |
    awk '{print} $2 == "attention-server" {printf "row|measured|%s|%s us|p50; p99 %s us\n", $1, $3, $4}'
}

# --- What runs ------------------------------------------------------------------------------------

logs=$(mktemp -d)
own_path=${LD_LIBRARY_PATH:-}
if [[ -f $build ]]; then
  mkdir "$logs/build" && tar -xzf "$build" -C "$logs/build" || exit 1
  build=$logs/build
elif ! $is_dry; then
  if [[ ! -x $build/bin/attention-bench-cuda ]]; then make_build || exit 1; fi
  build=$(realpath "$build")
fi
if [[ -n $pack ]]; then
  pack_build
  status=$?
  rm -r "$logs"
  exit "$status"
fi
if [[ -d $build/system ]]; then export LD_LIBRARY_PATH=$build/lib:$build/system${own_path:+:$own_path}; fi

# Without a GPU there is nothing to fail.
if ! $is_dry; then
  "$build/bin/attention-bench-cuda" --filter 'no case' >"$logs/device.log" 2>&1
  if (($? == 77)); then
    grep '^skipped: ' "$logs/device.log" | tail -n 1
    exit 77
  fi
fi

check "parity and bits" device_test --gtest_filter='-*Repeat*'
check "1000 repetitions" device_test --gtest_filter='*Repeat*'
check "memcheck" checker memcheck 'CudaDeviceTest.SmallShapes'
check "racecheck" checker racecheck 'CudaDeviceTest.SmallShapes'
check "memcheck of projections" checker memcheck '*/ProjectionTest.*'
check "server end to end" end_to_end
check "kernel times" kernel_times
check "service times" service_times
check "transport times" transport_times

printf '%s\n' "${rows[@]}" | column -t -s '|'
exit "$failed"
