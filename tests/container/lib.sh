# shellcheck shell=bash
# Functions that tests/container/run.sh and bare_quickstart.sh share. To be sourced after deploy/lib.sh.

# Read by the sourcing scripts:
# shellcheck disable=SC2034
BASE_IMAGE=docker.io/library/debian:bookworm-slim
# shellcheck disable=SC2034
CONTAINER_DIR="$REPOSITORY_ROOT/build/container"

# Exit status that test runners read as "not run here"; the reason stands on stdout.
skip() {
  printf 'skipped: %s\n' "$*"
  exit 77
}

# make_root DIR: a minimal Debian 12 root. Made once: the directory appears only when complete.
make_root() {
  local root=$1 mirror
  if [[ -d "$root" ]]; then
    say "using $root"
    return 0
  fi
  mirror=$(debian_mirror) || {
    say "no Debian mirror among the apt sources"
    return 1
  }
  rm -rf "$root.partial"
  mkdir -p "$(dirname "$root")" &&
    as_root debootstrap --variant=minbase bookworm "$root.partial" "$mirror" >"$root.log" 2>&1 &&
    mv "$root.partial" "$root" && return 0
  tail -n 5 "$root.log" >&2
  return 1
}

# podman_settings FILE: for machines where the usual ones fail: without CAP_SYS_RESOURCE limits cannot
# be raised, without systemd cgroups are files, and crun refuses hybrid cgroups.
podman_settings() {
  local hard limit=16384
  hard=$(ulimit -Hn)
  if [[ "$hard" != unlimited ]] && ((hard < limit)); then limit=$hard; fi
  cat >"$1" <<CONF
[containers]
default_ulimits = ["nofile=$limit:$limit","nproc=$limit:$limit"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
}

# Our own marks on what we start, so that clean-up touches nothing else.
container_name() { printf 'attention-test-%d\n' "$$"; }
