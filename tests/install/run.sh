#!/usr/bin/env bash
# The quickstart's build can be installed, as a whole and by component, and works from where it was put.
#
#   tests/install/run.sh [BUILD]    a complete build; default build/release
#
# A second build folder is configured as the quickstart does it, and gets from BUILD those files alone that
# the quickstart's targets make: nothing is compiled twice.
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"

complete=${1:-$REPOSITORY_ROOT/build/release}
work=$(mktemp -d)
build=$work/build
server_pid=
trap clean_up EXIT

clean_up() {
  local status=$?
  trap - EXIT
  if [[ -n "$server_pid" ]]; then
    kill -TERM "$server_pid" 2>/dev/null || true
    wait "$server_pid" || status=$?
  fi
  rm -rf "$work"
  exit "$status"
}

quickstart_targets() { sed -n 's/^TARGETS=(\(.*\))$/\1/p' "$REPOSITORY_ROOT/deploy/quickstart.sh"; }

configure() {
  (cd "$REPOSITORY_ROOT" && cmake --preset release -B "$build" -DATTENTION_BUILD_TESTS=OFF) \
    >"$work/configure.log" 2>&1 || {
    cat "$work/configure.log"
    return 1
  }
}

# Hard links, or copies where the temporary folder is on another disk.
take_over() {
  local target output names
  for target in $(quickstart_targets); do
    names=$(ninja -C "$build" -t inputs "$target" | grep -E '\.(a|so)$' || true)
    for output in "bin/$target" $names; do
      [[ -e "$build/$output" ]] && continue
      if [[ "$output" == /* ]]; then continue; fi # of the system
      mkdir -p "$(dirname "$build/$output")"
      cp --link "$complete/$output" "$build/$output" 2>/dev/null ||
        cp "$complete/$output" "$build/$output" || return 1
    done
  done
}

# install_to PREFIX [COMPONENT]
install_to() {
  cmake --install "$build" --prefix "$1" ${2:+--component "$2"} >"$work/install.log" 2>&1 || {
    tail -n 5 "$work/install.log"
    return 1
  }
}

# expect_files PREFIX EXPECTED...: the files of PREFIX, but for those that are optional.
expect_files() {
  local prefix=$1 actual expected
  shift
  actual=$(cd "$prefix" && find . -type f | sed 's,^\./,,' | sort)
  expected=$(printf '%s\n' "$@" | sort)
  [[ "$actual" == "$expected" ]] && return 0
  printf 'installed:\n%s\nexpected:\n%s\n' "$actual" "$expected"
  return 1
}

check_server() {
  install_to "$work/server" server &&
    expect_files "$work/server" bin/attention-server &&
    "$work/server/bin/attention-server" --version
}

check_tools() {
  install_to "$work/tools" tools &&
    expect_files "$work/tools" bin/attention-loadgen bin/attention-quickstart
}

# The server and the tools, together in one prefix, as `cmake --install` without a component puts them.
check_all() {
  install_to "$work/all" || return 1
  "$work/all/bin/attention-server" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
    --port-file "$work/ports.json" >"$work/server.log" 2>&1 &
  server_pid=$!
  await_file "$work/ports.json" "$server_pid" 60 || {
    cat "$work/server.log"
    return 1
  }
  address=$(listen_address "$work/ports.json")
  "$work/all/bin/attention-quickstart" --target "$address"
}

check_sdk() {
  local cxx
  cxx=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
  ATTENTION_TARGET=$address "$REPOSITORY_ROOT/tests/integration/consumer/check.sh" cmake "$build" "$cxx"
}

# Targets that the quickstart does not build are there all the same.
check_bench_target() { ninja -C "$build" -n attention-bench >/dev/null; }

main() {
  if [[ ! -x "$complete/bin/attention-server" ]]; then die "no build in $complete; make one, or name it"; fi
  timed "Configure as the quickstart does" configure
  timed "Take over what the quickstart builds" take_over
  timed "Install all, and use it" check_all
  timed "Component server" check_server
  timed "Component tools" check_tools
  timed "Component sdk, and a program that uses it" check_sdk
  timed "attention-bench is a target" check_bench_target
}

main "$@"
