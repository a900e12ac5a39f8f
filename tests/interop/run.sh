#!/usr/bin/env bash
# Runs a Python client, made from the .proto files by the stock generator, against the real server.
#
#   tests/interop/run.sh [SERVER [UNITTEST-ARGUMENT...]]
#
# SERVER is the attention-server binary (default: $ATTENTION_SERVER, else build/release/bin). What
# follows goes to unittest, for example `-v` or `-k stream`. Prints `skipped: REASON` and exits 0
# where a Debian package is missing. PYTHON names another interpreter than Debian's.
set -euo pipefail

# shellcheck source=tests/interop/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

server=${1:-${ATTENTION_SERVER:-$repository/build/release/bin/attention-server}}
shift $(($# > 0 ? 1 : 0))
grpc_proto=/usr/share/grpc-proto/grpc  # of Debian's grpc-proto: health and reflection

require_stub_tools
require_server "$server"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The generated modules take the path of their file, and a package `grpc` exists already.
copy_standard_protos() {
  install -D "$grpc_proto/health/v1/health.proto" "$work/standard/grpc_health/v1/health.proto"
  install -D "$grpc_proto/reflection/v1alpha/reflection.proto" \
    "$work/standard/grpc_reflection/v1alpha/reflection.proto"
}

mkdir "$work/stubs"
protos=("$repository"/proto/attention/v1/*.proto)
generate_python "$work/stubs" "$repository/proto" "${protos[@]}"
protoc -I"$repository/proto" --include_source_info \
  --descriptor_set_out="$work/attention.descriptors" "${protos[@]}"
if [[ -d $grpc_proto ]]; then
  copy_standard_protos
  generate_python "$work/stubs" "$work/standard" grpc_health/v1/health.proto \
    grpc_reflection/v1alpha/reflection.proto
fi

# Everything is on this host; gRPC would follow a proxy of the environment otherwise.
export no_proxy=127.0.0.1
ATTENTION_SERVER=$server ATTENTION_DESCRIPTORS=$work/attention.descriptors \
  PYTHONPATH=$work/stubs:$here PYTHONDONTWRITEBYTECODE=1 "$python" "$here/run_tests.py" "$@"
