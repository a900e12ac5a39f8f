#!/usr/bin/env bash
# From a fresh clone to a server that computes: installs what is missing, builds, starts the server,
# checks seven attention variants against float64, measures ten seconds of load, keeps serving.
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BUILD_DIR="$REPOSITORY_ROOT/build/release"
TARGETS=(attention-server attention-loadgen attention-quickstart)

usage() {
  cat <<'USAGE'
usage: deploy/quickstart.sh [options] [-- server flags]

  --once             stop the server after the load test and exit with 0
  --port N           serve on 127.0.0.1:N instead of a free port
  --load-seconds N   length of the load test (10)
  --no-install       do not install packages
  --help             this text

What follows -- goes to attention-server, such as: -- --threads 1 --log-level debug
USAGE
}

parse_arguments() {
  is_once=false port=0 load_seconds=10 server_flags=()
  while (($# > 0)); do
    case $1 in
      --once) is_once=true ;;
      --port)
        port=$(number_of "$@")
        shift
        ;;
      --load-seconds)
        load_seconds=$(number_of "$@")
        shift
        ;;
      --no-install) export ATTENTION_NO_INSTALL=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        server_flags=("$@")
        break
        ;;
      *)
        usage >&2
        die "unknown option $1"
        ;;
    esac
    shift
  done
}

# number_of FLAG VALUE ...: the value, or the end of the script.
number_of() {
  if [[ ! "${2:-}" =~ ^[0-9]+$ ]]; then die "$1 is '${2:-}', expected a number"; fi
  printf '%s\n' "$2"
}

configure() {
  # A build folder that is there, such as that of tests/run.sh, which also holds the tests, is used as it is.
  local options=()
  if [[ ! -f "$BUILD_DIR/CMakeCache.txt" ]]; then
    options=(-DATTENTION_BUILD_TESTS=OFF -DATTENTION_UNITY=ON)
  fi
  (cd "$REPOSITORY_ROOT" && cmake --preset release "${options[@]}") >"$work_dir/configure.log" 2>&1 || {
    cat "$work_dir/configure.log" >&2
    return 1
  }
}

build() { cmake --build "$BUILD_DIR" --target "${TARGETS[@]}" >&2; }

# In a session of its own: Ctrl-C would reach it beside stop_server's signal, and a second signal ends a
# server without its drain.
start_server() {
  setsid "$BUILD_DIR/bin/attention-server" --listen "127.0.0.1:$port" --admin-listen 127.0.0.1:0 \
    --port-file "$work_dir/ports.json" "${server_flags[@]}" >"$work_dir/server.log" 2>&1 &
  server_pid=$!
  if ! await_file "$work_dir/ports.json" "$server_pid" 60; then
    cat "$work_dir/server.log" >&2
    say "the server did not start"
    return 1
  fi
  address=$(listen_address "$work_dir/ports.json")
  admin=$(admin_address "$work_dir/ports.json")
  say "gRPC on $address, metrics on http://$admin/metrics, log in $work_dir/server.log"
}

run_variants() { "$BUILD_DIR/bin/attention-quickstart" --target "$address"; }

run_load() {
  "$BUILD_DIR/bin/attention-loadgen" --target "$address" --workload attend --concurrency 4 \
    --duration "${load_seconds}s" --progress
}

# SIGTERM, and the server's own word on how its drain went.
stop_server() {
  local status=0
  [[ -n "$server_pid" ]] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  if ((status != 0)); then
    cat "$work_dir/server.log" >&2
    say "the server ended with $status"
    return 1
  fi
  say "drained and stopped"
}

serve_until_interrupted() {
  heading "Serving on $address until Ctrl-C"
  say "try: build/release/bin/attention-loadgen --target $address --workload decode"
  # `wait` returns at once with the signal's number.
  local status=0
  trap 'is_interrupted=true' INT TERM
  wait "$server_pid" || status=$?
  if ! $is_interrupted; then
    cat "$work_dir/server.log" >&2
    server_pid=
    die "the server ended by itself with $status"
  fi
  timed "Stop the server" stop_server
}

clean_up() {
  local status=$?
  trap - EXIT
  if [[ -n "$server_pid" ]]; then
    kill -TERM "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$work_dir"
  exit "$status"
}

main() {
  parse_arguments "$@"
  local start
  start=$(now_ms)
  server_pid='' is_interrupted=false
  work_dir=$(mktemp -d)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  timed "Packages" ensure_packages "$REPOSITORY_ROOT/deploy/packages-build.txt"
  timed "Configure" configure
  timed "Build (server, load generator, example)" build
  timed "Start the server" start_server
  timed "Seven variants, each against float64" run_variants
  timed "Load test, $load_seconds s" run_load
  say ""
  say "${COLOUR_GOOD}everything worked${COLOUR_OFF}, $(seconds_since "$start") s in all"
  if $is_once; then
    timed "Stop the server" stop_server
  else
    serve_until_interrupted
  fi
}

main "$@"
