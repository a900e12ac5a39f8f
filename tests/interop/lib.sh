# shellcheck shell=bash
# Shared by run.sh and run_examples.sh: what is needed, and the stubs. To be sourced.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for the sourcing script
repository=$(cd "$here/../.." && pwd)
python=${PYTHON:-/usr/bin/python3}

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

# python3-grpc-tools would bundle protoc and its plugin, but Debian 12's is of 2018 and refuses
# `optional`.
require_stub_tools() {
  require_command protoc protobuf-compiler
  require_command grpc_python_plugin protobuf-compiler-grpc
  require_command "$python" python3
  require_module google.protobuf python3-protobuf
  require_module grpc python3-grpcio
  require_module numpy python3-numpy
}

require_server() {  # BINARY
  if [[ ! -x $1 ]]; then
    echo "error: no server at $1; build it, or name it as the first argument" >&2
    exit 1
  fi
}

generate_python() {  # OUTPUT IMPORT-ROOT FILE...
  protoc -I"$2" --python_out="$1" --grpc_python_out="$1" \
    --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" "${@:3}"
}
