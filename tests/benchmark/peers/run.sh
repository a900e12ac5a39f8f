#!/usr/bin/env bash
# Our CPU kernels beside torch, ONNX Runtime and oneDNN, in turns, in one run. README.md says what is
# compared.
#
#   tests/benchmark/peers/run.sh [--threads N] [--filter X] [--json F] [--markdown F] [--seconds S]
#                                [--rounds R]
#
# Installs the peers into build/peers-venv and, for oneDNN, a Debian package. A peer that cannot be had
# is named and left out. ATTENTION_NO_INSTALL=1 takes what is there; BUILD_DIR names another build than
# build/release (it must be configured already).
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/lib.sh
source "$HERE/../../../deploy/lib.sh"

BUILD_DIR=${BUILD_DIR:-}
VENV=$REPOSITORY_ROOT/build/peers-venv
TARGET=attention_bench_peers

# pip_install PEER REQUIREMENT...: goes on without the peer where it cannot be had.
pip_install() {
  local peer=$1 log=$VENV/pip-$1.log
  shift
  if "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1; then
    return 0
  fi
  warn "skipped: $peer: pip cannot install $*: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
}

make_environment() {
  ensure_packages "$HERE/packages.txt" || warn "not all packages could be installed"
  [[ -x "$VENV/bin/python" ]] || python3 -m venv "$VENV"
  if [[ -n "${ATTENTION_NO_INSTALL:-}" ]]; then return 0; fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check 'numpy>=1.26,<3'
  pip_install onnxruntime 'onnxruntime>=1.20,<2' 'onnx>=1.17,<2'
  pip_install torch 'torch>=2.6,<3'
}

build_library() {
  if [[ -z "$BUILD_DIR" ]]; then
    BUILD_DIR=$REPOSITORY_ROOT/build/release
    (cd "$REPOSITORY_ROOT" && cmake --preset release -DATTENTION_BUILD_TESTS=ON) >/dev/null
  else
    cmake "$BUILD_DIR" >/dev/null # looks for a oneDNN that has come since
  fi
  cmake --build "$BUILD_DIR" --target "$TARGET" -- --quiet >&2
}

main() {
  if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    return 0
  fi
  timed "Peers" make_environment
  timed "Library" build_library
  "$VENV/bin/python" "$HERE/peers.py" \
    --library "$BUILD_DIR/tests/benchmark/peers/lib$TARGET.so" "$@"
}

main "$@"
