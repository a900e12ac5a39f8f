# shellcheck shell=bash
# Shared by deploy/quickstart.sh, tests/run.sh, tests/container/ and the Dockerfile. To be sourced.
#
# Messages go to stderr, so that a function's output may be captured.

# Names that only the sourcing script reads:
# shellcheck disable=SC2034
REPOSITORY_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Colour only where somebody looks, and never against NO_COLOR.
# shellcheck disable=SC2034
if [[ -t 2 && -z "${NO_COLOR:-}" && "${TERM:-dumb}" != dumb ]]; then
  COLOUR_BOLD=$'\e[1m' COLOUR_GOOD=$'\e[32m' COLOUR_BAD=$'\e[31m' COLOUR_DIM=$'\e[2m' COLOUR_OFF=$'\e[0m'
else
  COLOUR_BOLD='' COLOUR_GOOD='' COLOUR_BAD='' COLOUR_DIM='' COLOUR_OFF=''
fi

say() { printf '%s\n' "$*" >&2; }
heading() { printf '\n%s==> %s%s\n' "$COLOUR_BOLD" "$*" "$COLOUR_OFF" >&2; }
warn() { printf '%swarning: %s%s\n' "$COLOUR_BAD" "$*" "$COLOUR_OFF" >&2; }
die() {
  printf '%serror: %s%s\n' "$COLOUR_BAD" "$*" "$COLOUR_OFF" >&2
  exit 1
}

has_command() { command -v "$1" >/dev/null 2>&1; }

now_ms() { date +%s%3N; }

# seconds_since MS: "12.3", from a value of now_ms.
seconds_since() {
  local elapsed=$(($(now_ms) - $1))
  printf '%d.%d' $((elapsed / 1000)) $((elapsed % 1000 / 100))
}

# timed NAME COMMAND...: runs the command under a heading and says how long it took. A function given
# as the command runs without `set -e` where the caller tests timed's status, so it must pass errors on.
# It also sees timed's local variables: hence their names.
timed() {
  local timed_name=$1 timed_start timed_status=0
  shift
  heading "$timed_name"
  timed_start=$(now_ms)
  "$@" || timed_status=$?
  if ((timed_status == 0)); then
    printf '%s<== %s: %s s%s\n' "$COLOUR_DIM" "$timed_name" "$(seconds_since "$timed_start")" \
      "$COLOUR_OFF" >&2
  else
    printf '%s<== %s: failed with %d after %s s%s\n' "$COLOUR_BAD" "$timed_name" "$timed_status" \
      "$(seconds_since "$timed_start")" "$COLOUR_OFF" >&2
  fi
  return "$timed_status"
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif has_command sudo; then
    sudo "$@"
  else
    say "neither root nor sudo: cannot run $*"
    return 1
  fi
}

is_installed() {
  [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

# package_entries FILE...: the entries of package lists, without comments and blank lines.
package_entries() {
  sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$@" | sort -u
}

# missing_entries FILE...: those entries of which no alternative is installed.
missing_entries() {
  local entry name names
  while read -r entry; do
    IFS='|' read -ra names <<<"$entry"
    for name in "${names[@]}"; do
      if is_installed "$name"; then continue 2; fi
    done
    printf '%s\n' "$entry"
  done < <(package_entries "$@")
}

# known_name ENTRY: the first alternative of the entry that apt can install.
known_name() {
  local name names
  IFS='|' read -ra names <<<"$1"
  for name in "${names[@]}"; do
    if [[ -n "$(apt-cache madison "$name" 2>/dev/null)" ]]; then
      printf '%s\n' "$name"
      return 0
    fi
  done
  printf '%s\n' "${names[0]}" # apt-get's own message says what is wrong with it
}

# Another apt may hold the lock, such as a machine's own updates after boot.
apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

# ensure_packages FILE...: installs what the lists name and the machine lacks; says so.
ensure_packages() {
  local missing entry names=()
  if ! has_command apt-get || ! has_command dpkg-query; then
    say "not a Debian or Ubuntu machine: assuming that the equivalents of these are installed:"
    say "$(package_entries "$@" | paste -sd ' ')"
    return 0
  fi
  missing=$(missing_entries "$@")
  if [[ -z "$missing" ]]; then
    say "all packages are installed"
    return 0
  fi
  say "to install: ${missing//$'\n'/ }"
  if [[ -n "${ATTENTION_NO_INSTALL:-}" ]]; then
    say "ATTENTION_NO_INSTALL is set: not installing them"
    return 0
  fi
  apt_get update >&2 || warn "apt-get update failed; trying with the package lists at hand"
  while read -r entry; do names+=("$(known_name "$entry")"); done <<<"$missing"
  apt_get install -y --no-install-recommends "${names[@]}" >&2
}

# debian_mirror: where this machine takes Debian's main archive from. Read at run time, because it
# differs between machines and belongs in no file.
debian_mirror() {
  local file mirror
  for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -r "$file" ]] || continue
    mirror=$(sed -nE -e 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p' \
      -e 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]].*/\2/p' "$file" |
      grep -E '/debian/?$' | head -n 1) || true
    if [[ -n "$mirror" ]]; then
      printf '%s\n' "$mirror"
      return 0
    fi
  done
  return 1
}

# listen_address FILE: the first gRPC address in a file written by attention-server --port-file;
# admin_address FILE: that of the admin pages.
listen_address() { sed -nE 's/.*"listen": ?\["([^"]+)".*/\1/p' "$1"; }
admin_address() { sed -nE 's/.*"admin_listen": ?"([^"]*)".*/\1/p' "$1"; }

# await_file FILE PID SECONDS: waits until the file has content; fails when the process ends first.
await_file() {
  local file=$1 pid=$2 limit=$3 start=$SECONDS
  until [[ -s "$file" ]]; do
    kill -0 "$pid" 2>/dev/null || return 1
    ((SECONDS - start < limit)) || return 1
    sleep 0.05
  done
}
