#!/usr/bin/env bash
# attention-healthcheck [PATH]: exit 0 when the admin server answers 200 to GET PATH (/healthz).
#
# The image has no HTTP client; bash speaks enough of it. The port is the one that the server itself
# takes from the environment.
set -euo pipefail

path=${1:-/healthz}
port=${ATTENTION_ADMIN_LISTEN:-127.0.0.1:7071}
port=${port##*:}

exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$path" >&3
read -r -t 3 _ code _ <&3
[[ "$code" == 200 ]]
