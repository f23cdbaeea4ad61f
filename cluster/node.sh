#!/usr/bin/env bash
# Start this machine as a node of a Ray cluster, and stay in front: `node.sh head` or `node.sh worker HEAD:6379`.
# Further words go to `ray start`. A node that others can reach does not start without a token: whoever reaches an
# unguarded port runs code.
#   RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH   the cluster's token, or the file that holds it (mode 0600)
#   TILTH_BIND                              where the dashboard and job server listen; 127.0.0.1 unless set
#   TILTH_METRICS_PORT                      where Prometheus finds this node's metrics; 8080 unless set
set -euo pipefail
role="${1:-}"
[ "$role" = head ] || [ "$role" = worker ] || { echo "usage: node.sh head | node.sh worker HEAD:PORT" >&2; exit 2; }
shift

export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
file="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
bind="${TILTH_BIND:-127.0.0.1}"
metrics=(--metrics-export-port "${TILTH_METRICS_PORT:-8080}")

if [ "$RAY_AUTH_MODE" != token ]; then
  echo "RAY_AUTH_MODE=$RAY_AUTH_MODE: a node is reached by others and needs a token; unset it, or set it to token" >&2
  exit 1
fi
if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
  if [ ! -s "$file" ]; then
    echo "there is no token in RAY_AUTH_TOKEN or $file; make one: (umask 077; mkdir -p ~/.ray;" \
      "openssl rand -hex 32 > $file), and give every node the same" >&2
    exit 1
  fi
  if [ ! -r "$file" ]; then
    echo "$(id -un 2>/dev/null || id -u) (user $(id -u)) cannot read the token in $file; make it that user's:" \
      "chown $(id -u) where it lies" >&2
    exit 1
  fi
  mode="$(stat -Lc %a "$file")"
  if [ "${mode: -2}" != 00 ] && ! chmod 600 "$file" 2>/dev/null; then
    # a mounted secret cannot be changed from here: its group is whom it was given to
    [ "${mode: -1}" = 0 ] || { echo "$file has mode $mode: others can read the token; chmod 600 $file" >&2; exit 1; }
  fi
fi

# work that runs out of memory is for the ledger to isolate, and workers are the work: no niceness
export RAY_task_oom_retries=0 RAY_worker_niceness=0
if [ "$role" = head ]; then
  exec ray start --head --block --disable-usage-stats --port "${TILTH_PORT:-6379}" --dashboard-host "$bind" \
    --include-dashboard true "${metrics[@]}" "$@"
fi
address="${1:?worker needs the address of the head, HOST:6379}"
shift
exec ray start --block --disable-usage-stats --address "$address" "${metrics[@]}" "$@"
