#!/usr/bin/env bash
# Runs the commands of the pages as they stand there: each block with a tag `<!-- run: SETTING -->` (which
# tests/lint/check_readme.py demands of what has no other one), against a server of a complete build. Its setting
# `keys` compares docs/configuration.md with the server's flags.
#
#   tests/docs/run.sh [SETTING...]    only those; default all
#
# Only what depends on the machine is replaced: localhost:7070 by the server's address, and /usr/local by a
# folder of this run. Blocks of one page share a folder, in which the repository's files lie under their names.
# Settings whose tools cannot be had here (PyPI, Java) are skipped, and the last line says so.
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"

BUILD_DIR="$REPOSITORY_ROOT/build/release"
PYTHON_DIR="$REPOSITORY_ROOT/build/docs-python"
SETTINGS=(keys quickstart install server identity java preload python)

work=$(mktemp -d)
server_pid=
server_flags=()
skipped=()
trap clean_up EXIT
trap 'exit 143' TERM

clean_up() {
  local status=$?
  trap - EXIT
  stop_server || status=1
  rm -rf "$work"
  exit "$status"
}

# --- The server -----------------------------------------------------------------------------------

start_server() {
  rm -f "$work/ports.json"
  "$BUILD_DIR/bin/attention-server" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
    --port-file "$work/ports.json" "${server_flags[@]}" >"$work/server.log" 2>&1 &
  server_pid=$!
  await_file "$work/ports.json" "$server_pid" 60 || {
    cat "$work/server.log"
    return 1
  }
  address=$(listen_address "$work/ports.json")
}

stop_server() {
  local status=0
  [[ -n "$server_pid" ]] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  ((status == 0)) || say "the server ended with $status"
  return "$status"
}

# --- A page's commands ----------------------------------------------------------------------------

# place FOLDER: the folder that a page's reader stands in. What its commands write stays out of the repository.
place() {
  local name
  mkdir -p "$1/build"
  for name in proto client deploy tests; do ln -s "$REPOSITORY_ROOT/$name" "$1/$name"; done
  ln -s "$BUILD_DIR" "$1/build/release"
}

# run_page FILE: its commands in one shell, which ends with the first that fails.
run_page() {
  local folder=${page_folder:-$work/$(basename "$1")}
  [[ -d "$folder" ]] || place "$folder"
  sed -e "s,localhost:7070,${address:-},g" -e "s,/usr/local,$folder/usr,g" "$1" >"$folder/commands.sh"
  (cd "$folder" && PATH=${extra_path:-}$BUILD_DIR/bin:$PATH bash -euo pipefail -x commands.sh)
}

run_pages() {
  local page
  for page in "$work/pages/$1"/*; do
    timed "$1: ${page##*/}" run_page "$page" || return 1
  done
}

skip_setting() {
  say "skipped: $*"
  skipped+=("$*")
}

# --- Settings -------------------------------------------------------------------------------------

# No commands: the page of the configuration has the keys that the server has.
run_keys() { python3 "$REPOSITORY_ROOT/tests/docs/keys.py" "$BUILD_DIR/bin/attention-server"; }

# As it stands it would serve until somebody stops it, and tests/run.sh is what may have started this.
run_quickstart() {
  local commands=$work/pages/quickstart/README.md
  sed -i -e 's,^deploy/quickstart.sh,& --once --load-seconds 1 --no-install,' -e '/^tests\/run.sh/d' "$commands"
  cd "$REPOSITORY_ROOT" && timed "quickstart: README.md" bash -euo pipefail "$commands"
}

run_install() { run_pages install; }

run_server() { start_server && run_pages server && stop_server; }

run_identity() { run_pages identity; }

run_java() {
  if ! has_command javac || [[ ! -e /usr/share/java/grpc-netty.jar ]]; then
    skip_setting "Java: no javac, or no libgrpc-java"
    return 0
  fi
  start_server && run_pages java && stop_server
}

# The file that a server is given, beside weights of the names and shapes that it asks for.
run_preload() {
  local page
  for page in "$work/pages/preload"/*; do
    mkdir -p "$work/preload"
    cp "$page" "$work/preload/layers.json"
    python3 "$REPOSITORY_ROOT/tests/docs/make_weights.py" "$work/preload/layers.json" || return 1
    server_flags=(--preload-layers "$work/preload/layers.json")
    timed "preload: ${page##*/}" start_server || return 1
    stop_server || return 1
  done
  server_flags=()
}

# Its pages share a folder, in which venv stays from run to run.
run_python() {
  local log=$work/pip.log page_folder=$PYTHON_DIR
  if [[ -n "${ATTENTION_NO_INSTALL:-}" ]]; then
    skip_setting "Python: ATTENTION_NO_INSTALL is set"
    return 0
  fi
  if [[ -d "$PYTHON_DIR" ]]; then
    find "$PYTHON_DIR" -mindepth 1 -maxdepth 1 ! -name venv -exec rm -r {} +
  fi
  place "$PYTHON_DIR" && python3 -m venv "$PYTHON_DIR/venv" || return 1
  if ! "$PYTHON_DIR/venv/bin/python3" -m pip install --quiet --disable-pip-version-check --retries 1 \
    grpcio-tools numpy ml_dtypes >"$log" 2>&1; then
    skip_setting "Python: PyPI: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
    return 0
  fi
  # Two programs share the cores: threads that wait busily would take them from the server.
  export OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive PIP_DISABLE_PIP_VERSION_CHECK=1
  extra_path=$PYTHON_DIR/venv/bin:
  start_server && run_pages python && stop_server
}

main() {
  local setting
  [[ -x "$BUILD_DIR/bin/attention-server" ]] || die "no server in $BUILD_DIR/bin; build it"
  if (($# == 0)); then set -- "${SETTINGS[@]}"; fi
  python3 "$REPOSITORY_ROOT/tests/docs/blocks.py" "$work/pages"
  # Everything is on this host; gRPC would follow a proxy of the environment otherwise.
  export no_proxy=127.0.0.1 PYTHONDONTWRITEBYTECODE=1
  for setting in "$@"; do "run_$setting" || die "a command of the pages failed: $setting"; done
  if ((${#skipped[@]} > 0)); then echo "skipped: $(printf '%s; ' "${skipped[@]}")"; fi
}

main "$@"
