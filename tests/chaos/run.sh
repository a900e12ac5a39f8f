#!/usr/bin/env bash
# Abuses a real server while a load goes on beside, of which every answer is compared with float64: nothing of
# the load may fail, and after each abuse new connections are served, memory and descriptors are given back, and
# the server drains and ends with 0.
#
#   tests/chaos/run.sh [--long [MINUTES]] [--list] [NAME...]
#
# --long runs all scenarios again and again for so long (30 minutes); --list names them. ATTENTION_BIN is the
# folder of attention-server and attention-loadgen (default: build/release/bin). Prints `skipped: REASON` and
# exits 0 where a Debian package is missing.
set -euo pipefail

# shellcheck source=tests/interop/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../interop/lib.sh"

bin=${ATTENTION_BIN:-$repository/build/release/bin}
require_stub_tools
require_server "$bin/attention-server"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/stubs"
generate_python "$work/stubs" "$repository/proto" "$repository"/proto/attention/v1/*.proto

# Everything is on this host; gRPC would follow a proxy of the environment otherwise. Threads of numpy that wait
# busily would take the processors from the server.
export no_proxy=127.0.0.1 OPENBLAS_NUM_THREADS=1
ATTENTION_SERVER=$bin/attention-server ATTENTION_LOADGEN=$bin/attention-loadgen TMPDIR=$work \
  PYTHONPATH=$work/stubs:$repository/tests/chaos:$repository/tests/interop PYTHONDONTWRITEBYTECODE=1 \
  "$python" "$repository/tests/chaos/run_chaos.py" "$@"
