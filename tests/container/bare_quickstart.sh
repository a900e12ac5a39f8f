#!/usr/bin/env bash
# deploy/quickstart.sh --once on a machine that has nothing: a fresh Debian 12 root with only the
# clone of HEAD in it. Prints the wall time. Needs root; not part of tests/run.sh unless asked for.
#
#   tests/container/bare_quickstart.sh [--worktree]   --worktree: the files as they are, not HEAD
set -euo pipefail

# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"
# shellcheck source=tests/container/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ROOT_DIR="$CONTAINER_DIR/bare"

mount_kernel_files() {
  as_root mount -t proc proc "$ROOT_DIR/proc" &&
    as_root mount --rbind /sys "$ROOT_DIR/sys" && as_root mount --make-rslave "$ROOT_DIR/sys" &&
    as_root mount -t tmpfs tmpfs "$ROOT_DIR/dev" &&
    make_devices
}

# Not the host's /dev: nothing in here may touch a real device.
make_devices() {
  local entry name minor
  for entry in null:3 zero:5 full:7 random:8 urandom:9; do
    name=${entry%:*} minor=${entry#*:}
    as_root mknod -m 666 "$ROOT_DIR/dev/$name" c 1 "$minor"
  done
  as_root mkdir -m 1777 "$ROOT_DIR/dev/shm"
  as_root ln -s /proc/self/fd "$ROOT_DIR/dev/fd"
}

# Beside bookworm the updates and security suites, as on an installed machine; the same mirror.
copy_machine_settings() {
  local mirror
  mirror=$(debian_mirror)
  printf 'deb %s bookworm main\ndeb %s bookworm-updates main\n' "$mirror" "$mirror" |
    as_root tee "$ROOT_DIR/etc/apt/sources.list" >/dev/null
  as_root cp /etc/resolv.conf /etc/hosts "$ROOT_DIR/etc/"
}

copy_clone() {
  as_root rm -rf "$ROOT_DIR/clone" && as_root mkdir "$ROOT_DIR/clone" || return
  if [[ "$what" == --worktree ]]; then
    (cd "$REPOSITORY_ROOT" && git ls-files -co --exclude-standard -z | tar -c --null -T -)
  else
    git -C "$REPOSITORY_ROOT" archive HEAD
  fi | as_root tar -C "$ROOT_DIR/clone" --no-same-owner -x
}

run_quickstart() {
  as_root env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 chroot "$ROOT_DIR" /clone/deploy/quickstart.sh --once
}

clean_up() {
  local status=$?
  trap - EXIT
  if mountpoint -q "$ROOT_DIR/proc"; then as_root umount "$ROOT_DIR/proc"; fi
  if mountpoint -q "$ROOT_DIR/sys"; then as_root umount -R -l "$ROOT_DIR/sys"; fi
  if mountpoint -q "$ROOT_DIR/dev"; then as_root umount "$ROOT_DIR/dev"; fi
  # --one-file-system: should an unmount have failed, what is mounted survives.
  as_root rm -rf --one-file-system "$ROOT_DIR"
  exit "$status"
}

main() {
  what=${1:-}
  ensure_packages "$REPOSITORY_ROOT/deploy/packages-container.txt"
  has_command debootstrap || skip "debootstrap is not installed"
  debian_mirror >/dev/null || skip "no Debian mirror among the apt sources"
  trap clean_up EXIT
  timed "A bare Debian 12" make_root "$ROOT_DIR"
  copy_machine_settings
  mount_kernel_files || skip "this machine does not allow mounts"
  timed "Copy the clone" copy_clone
  timed "quickstart.sh --once on a bare machine" run_quickstart
}

main "$@"
