#!/usr/bin/env bash
# Installs the SDK of a build tree into a temporary prefix and builds and runs the consumer against it,
# once with find_package and once with pkg-config.
#
#   check.sh CMAKE BUILD_DIR CXX [FLAGS...]    FLAGS: those of the build, such as -fsanitize=address
#
# The first program of docs/clients.md calls the server at ATTENTION_TARGET, where that is set.
set -euo pipefail

cmake=$1 build_dir=$2 cxx=$3
flags=("${@:4}")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix

"$cmake" --install "$build_dir" --component sdk --prefix "$prefix" >"$work/install.log"

# The user gets no header that needs gRPC or protobuf, and no include that names this tree.
if grep -rnE '#include *[<"](grpc|google/protobuf|attention/v1/|client/|kernels/)' "$prefix/include"; then
  echo "an installed header includes what is not installed with it" >&2
  exit 1
fi
# The tree may be moved: nothing in it names where it was built or first put.
moved=$work/moved
mv "$prefix" "$moved"
if grep -rIlE "$prefix|$build_dir" "$moved"; then
  echo "an installed file names a path of this machine" >&2
  exit 1
fi

echo "== find_package"
"$cmake" -S "$here/project" -B "$work/build" -DCMAKE_PREFIX_PATH="$moved" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_FLAGS="${flags[*]}" >"$work/configure.log"
"$cmake" --build "$work/build"
"$work/build/consumer"
"$work/build/mock_consumer"
if [[ -n "${ATTENTION_TARGET:-}" ]]; then "$work/build/first_call" "$ATTENTION_TARGET"; fi

echo "== pkg-config"
pc_dir=$(dirname "$(find "$moved" -name attention-client.pc)")
# Word splitting is what pkg-config's output is for.
# shellcheck disable=SC2046
PKG_CONFIG_PATH=$pc_dir "$cxx" -std=c++20 "${flags[@]}" "$here/main.cc" -o "$work/consumer" \
  $(PKG_CONFIG_PATH=$pc_dir pkg-config --cflags --libs attention-client)
"$work/consumer"
