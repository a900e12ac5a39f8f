# shellcheck shell=bash
# Shared by run.sh, run_examples.sh and tests/benchmark/model/run.sh: what is needed, and the stubs. To be
# sourced.

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

# Sets packages_missing to why packages of requirements.txt are not there; empty when they are.
install_packages() {  # VENV
  local log=$1.log stamp=$1/installed
  packages_missing=""
  if [[ -n "${ATTENTION_NO_INSTALL:-}" ]] || cmp -s "$here/requirements.txt" "$stamp"; then return 0; fi
  if "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 \
      -r "$here/requirements.txt" >"$log" 2>&1; then
    cp "$here/requirements.txt" "$stamp"
    return 0
  fi
  # shellcheck disable=SC2034 # for the sourcing script
  packages_missing="PyPI: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
}

# Prepares what the examples need: PyPI's packages in build/interop-venv, over Debian's grpcio, and the
# environment of run_tests.py. WORK is a folder for files of this run. Sets python and packages_missing.
prepare_examples() {  # BIN WORK
  local venv=$repository/build/interop-venv
  if [[ -x $venv/bin/python ]] || "$python" -m venv --system-site-packages "$venv"; then
    install_packages "$venv"
    python=$venv/bin/python
  else
    packages_missing="$python cannot make a virtual environment, install python3-venv"
  fi
  mkdir "$2/stubs"
  generate_python "$2/stubs" "$repository/proto" "$repository"/proto/attention/v1/*.proto
  # Everything is on this host; gRPC would follow a proxy of the environment otherwise. Two programs share
  # the cores: threads of numpy and OpenMP that wait busily would take them from the server.
  export no_proxy=127.0.0.1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive
  export ATTENTION_SERVER=$1/attention-server ATTENTION_BIN=$1 ATTENTION_WORK=$2
  export ATTENTION_PACKAGES_MISSING=$packages_missing PYTHONDONTWRITEBYTECODE=1
  export PYTHONPATH=$2/stubs:$here:$repository/client/examples/python:$repository/tests/fixtures
}
