#!/usr/bin/env bash
# A language model whose attention is in the server, beside the same program with attention of its own.
# README.md says how; docs/performance/model.md has the figures.
#
#   tests/benchmark/model/run.sh [BIN [--rounds N] [--max-tokens N]]
#
# BIN is the folder of attention-server and attention-smollm2 (default: build/release/bin). The model
# comes from PyPI, as for tests/interop/run_examples.sh; without it nothing is measured, and the status is 1.
set -euo pipefail

# shellcheck source=tests/interop/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../interop/lib.sh"

bin=${1:-$repository/build/release/bin}
shift $(($# > 0 ? 1 : 0))

require_stub_tools
require_server "$bin/attention-server"
mkdir -p "$repository/build"
work=$(mktemp -d -p "$repository/build")
trap 'rm -rf "$work"' EXIT
prepare_examples "$bin" "$work"
if [[ -n $packages_missing ]]; then
  echo "error: no model: $packages_missing" >&2
  exit 1
fi
"$python" "$repository/tests/benchmark/model/model_bench.py" "$@"
