#!/usr/bin/env bash
# Runs a Python client, made from the .proto files by the stock generator, against the real server.
#
#   tests/interop/run.sh [SERVER [UNITTEST-ARGUMENT...]]
#
# SERVER is the attention-server binary (default: $ATTENTION_SERVER, else build/release/bin). What
# follows goes to unittest, for example `-v` or `-k stream`. Prints `skipped: REASON` and exits 0
# where a Debian package is missing. PYTHON names another interpreter than Debian's.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
server=${1:-${ATTENTION_SERVER:-$repository/build/release/bin/attention-server}}
shift $(($# > 0 ? 1 : 0))
python=${PYTHON:-/usr/bin/python3}
grpc_proto=/usr/share/grpc-proto/grpc  # of Debian's grpc-proto: health and reflection

require_command() {  # COMMAND PACKAGE
  command -v "$1" >/dev/null && return 0
  echo "skipped: $1 not found, install $2"
  exit 0
}

require_module() {  # MODULE PACKAGE
  "$python" -c "import $1" 2>/dev/null && return 0
  echo "skipped: $python has no module $1, install $2"
  exit 0
}

# python3-grpc-tools would bundle both of these, but Debian 12's is of 2018 and refuses `optional`.
require_command protoc protobuf-compiler
require_command grpc_python_plugin protobuf-compiler-grpc
require_command "$python" python3
require_module google.protobuf python3-protobuf
require_module grpc python3-grpcio
require_module numpy python3-numpy

if [[ ! -x $server ]]; then
  echo "error: no server at $server; build it, or name it as the first argument" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

generate() {  # IMPORT-ROOT FILE...
  protoc -I"$1" --python_out="$work/stubs" --grpc_python_out="$work/stubs" \
    --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" "${@:2}"
}

# The generated modules take the path of their file, and a package `grpc` exists already.
copy_standard_protos() {
  install -D "$grpc_proto/health/v1/health.proto" "$work/standard/grpc_health/v1/health.proto"
  install -D "$grpc_proto/reflection/v1alpha/reflection.proto" \
    "$work/standard/grpc_reflection/v1alpha/reflection.proto"
}

mkdir "$work/stubs"
protos=("$repository"/proto/attention/v1/*.proto)
generate "$repository/proto" "${protos[@]}"
protoc -I"$repository/proto" --include_source_info \
  --descriptor_set_out="$work/attention.descriptors" "${protos[@]}"
if [[ -d $grpc_proto ]]; then
  copy_standard_protos
  generate "$work/standard" grpc_health/v1/health.proto grpc_reflection/v1alpha/reflection.proto
fi

# Everything is on this host; gRPC would follow a proxy of the environment otherwise.
export no_proxy=127.0.0.1
ATTENTION_SERVER=$server ATTENTION_DESCRIPTORS=$work/attention.descriptors \
  PYTHONPATH=$work/stubs:$here PYTHONDONTWRITEBYTECODE=1 "$python" "$here/run_tests.py" "$@"
