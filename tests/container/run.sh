#!/usr/bin/env bash
# Builds the image with podman and uses it as an operator would: read-only, not root, no capabilities.
# Prints "skipped: reason" and exits with 77 where podman cannot run.
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"
# shellcheck source=tests/container/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

IMAGE=localhost/attention-server:test
BUILD_DIR="$REPOSITORY_ROOT/build/release"

# podman's warnings about the machine repeat with every command: kept, and shown when one fails.
podman_quiet() {
  local status=0
  as_root env ${CONTAINERS_CONF:+CONTAINERS_CONF="$CONTAINERS_CONF"} podman "$@" \
    2>"$CONTAINER_DIR/podman.log" || status=$?
  if ((status != 0)); then grep -v 'level=warning' "$CONTAINER_DIR/podman.log" >&2 || true; fi
  return "$status"
}

require_podman() {
  local packages=$REPOSITORY_ROOT/deploy/packages-container.txt
  ensure_packages "$packages" || skip "the container packages cannot be installed"
  has_command podman || skip "podman is not installed"
  podman_quiet info >/dev/null || skip "podman info fails: $(tail -n 1 "$CONTAINER_DIR/podman.log")"
}

provide_base_image() {
  if podman_quiet image exists "$BASE_IMAGE"; then return 0; fi
  if has_command debootstrap && debian_mirror >/dev/null; then
    timed "Base image by debootstrap" make_root "$CONTAINER_DIR/base" &&
      as_root tar -C "$CONTAINER_DIR/base" -c . | podman_quiet import - "$BASE_IMAGE" >/dev/null
  else
    timed "Base image from the registry" podman_quiet pull "$BASE_IMAGE"
  fi
}

revision() { git -C "$REPOSITORY_ROOT" rev-parse --short=12 HEAD 2>/dev/null || echo unknown; }

# First as the machine is set up, then with the settings for a machine that is itself a container.
choose_settings() {
  if podman_quiet run --rm "$BASE_IMAGE" true 2>"$CONTAINER_DIR/first.log"; then return 0; fi
  podman_settings "$CONTAINER_DIR/containers.conf"
  export CONTAINERS_CONF="$CONTAINER_DIR/containers.conf"
  if podman_quiet run --rm "$BASE_IMAGE" true 2>"$CONTAINER_DIR/second.log"; then
    say "podman runs with $CONTAINERS_CONF"
    return 0
  fi
  skip "podman cannot run a container: $(tail -n 1 "$CONTAINER_DIR/second.log")"
}

build_image() {
  # Podman's own format drops HEALTHCHECK.
  if ! podman_quiet build --format docker --build-arg "REVISION=$(revision)" -t "$IMAGE" \
    "$REPOSITORY_ROOT" >"$CONTAINER_DIR/build.log"; then
    tail -n 40 "$CONTAINER_DIR/build.log" >&2
    return 1
  fi
  printf 'image size: %d MB\n' \
    $(($(podman_quiet image inspect --format '{{.Size}}' "$IMAGE") / 1000000))
}

# run_container NETWORK-FLAGS...
run_container() {
  podman_quiet run -d --name "$name" --read-only --cap-drop=all --security-opt=no-new-privileges \
    --memory 2g --pids-limit 512 -e ATTENTION_KV_CAPACITY_BYTES=268435456 \
    -e ATTENTION_TRUST_TENANT_NAMES_FROM_NETWORK=true "$@" "$IMAGE" >/dev/null
}

# published PORT: where the host reaches it.
published() { podman_quiet port "$name" "$1/tcp" | head -n 1; }

start_container() {
  if run_container -p 127.0.0.1::7070 -p 127.0.0.1::7071; then
    address=$(published 7070) admin=$(published 7071)
    if [[ -z "$admin" ]]; then say "the container has ended"; return 1; fi
    return 0
  fi
  say "ports cannot be published here: using the host's network"
  podman_quiet rm -f "$name" >/dev/null || true
  address=127.0.0.1:17070 admin=127.0.0.1:17071
  run_container --network=host -e ATTENTION_LISTEN="$address" -e ATTENTION_ADMIN_LISTEN="$admin"
}

# The server's own lines come on standard error, which podman_quiet keeps for itself.
show_logs() { as_root podman logs "$name" >&2 || true; }

is_running() {
  [[ $(podman_quiet inspect --format '{{.State.Running}}' "$name") == true ]]
}

await_ready() {
  local start=$SECONDS
  until curl -fsS -m 2 "http://$admin/readyz" >/dev/null 2>&1; do
    is_running || return 1
    if ((SECONDS - start > 30)); then return 1; fi
    sleep 0.2
  done
}

expect() {
  local what=$1 expected=$2 actual=$3
  if [[ "$actual" == "$expected" ]]; then
    say "ok: $what is $actual"
    return 0
  fi
  say "$what is '$actual', expected '$expected'"
  return 1
}

check_identity() {
  expect "commit" "$(revision)" \
    "$(podman_quiet exec "$name" attention-server --version | sed -E 's/.*\((.*)\)/\1/')" &&
    expect "user" 65532 "$(podman_quiet exec "$name" id -u)" &&
    expect "capabilities" 0000000000000000 \
      "$(podman_quiet exec "$name" sed -n 's/^CapEff:\t//p' /proc/1/status)" &&
    expect "a write to the root" refused \
      "$(podman_quiet exec "$name" sh -c 'touch /probe 2>/dev/null && echo done || echo refused')"
}

build_example() {
  (cd "$REPOSITORY_ROOT" && { [[ -f build/release/CMakeCache.txt ]] || cmake --preset release -DATTENTION_BUILD_TESTS=OFF; } &&
    cmake --build --preset release --target attention-quickstart) >"$CONTAINER_DIR/example.log" 2>&1 || {
    tail -n 20 "$CONTAINER_DIR/example.log" >&2
    return 1
  }
}

call_server() { "$BUILD_DIR/bin/attention-quickstart" --target "$address"; }

# Without systemd no timer runs it: asked for by hand.
check_health() {
  podman_quiet healthcheck run "$name" &&
    expect "health" healthy "$(podman_quiet inspect --format '{{.State.Health.Status}}' "$name" 2>/dev/null ||
      podman_quiet inspect --format '{{.State.Healthcheck.Status}}' "$name")"
}

stop_container() {
  podman_quiet stop -t 40 "$name" >/dev/null &&
    expect "exit code after SIGTERM" 0 "$(podman_quiet inspect --format '{{.State.ExitCode}}' "$name")"
}

clean_up() {
  local status=$?
  trap - EXIT
  if ((status != 0 && status != 77)); then show_logs; fi
  podman_quiet rm -f "$name" >/dev/null 2>&1 || true
  exit "$status"
}

main() {
  mkdir -p "$CONTAINER_DIR"
  name=$(container_name)
  require_podman
  provide_base_image
  choose_settings
  trap clean_up EXIT
  timed "Build the image" build_image
  timed "Build the calling example" build_example
  timed "Start" start_container
  timed "Ready" await_ready
  timed "Not root, no capabilities, read-only" check_identity
  timed "Call it" call_server
  timed "Health check" check_health
  timed "Stop" stop_container
}

main "$@"
