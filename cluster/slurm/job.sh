#!/usr/bin/env bash
# One run on Slurm: a Ray cluster over the allocation, the run, and the end of both.
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm/job.sh recipe.yaml --out /shared/runs/sft
# Needs the environment of requirements/install.sh on a file system that all nodes see. Requeued after a preemption
# or a lost node, it goes on from what is finished.
#SBATCH --job-name=tilth
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:INT@120
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch job.sh RECIPE [a.b.c=value …] --out DIRECTORY" >&2; exit 2; }
root="${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1091
source "$root/.venv/bin/activate"

# a token for this job alone: in a file of the owner's that the nodes read, never on a command line
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${TILTH_SHARED_DIR:-$HOME}/.ray/tilth-$SLURM_JOB_ID"
mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill "${nodes[@]}" 2>/dev/null || true' EXIT

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
port=$((20000 + SLURM_JOB_ID % 20000))
nodes=()
gpus=()
[ -z "${SLURM_GPUS_PER_NODE:-}" ] || gpus=(--gpus-per-task="$SLURM_GPUS_PER_NODE")
node() { # hosts, how many, then what node.sh is told
  local hosts="$1" count="$2"
  shift 2
  srun --nodes="$count" --ntasks="$count" --nodelist="$hosts" "${gpus[@]}" --overlap \
    bash "$root/cluster/node.sh" "$@" --num-cpus "${SLURM_CPUS_ON_NODE:-1}" &
  nodes+=("$!")
}
TILTH_PORT="$port" node "$head" 1 head
for _ in $(seq 60); do
  ray health-check --address "$head:$port" 2>/dev/null && break
  sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2 | paste -sd,)"
  node "$others" $((SLURM_JOB_NUM_NODES - 1)) worker "$head:$port"
fi

# the batch shell is told 120 s before the end: hand that on, so that the run stops as Ctrl-C would stop it
# (a process in the background heeds no INT unless it has a group of its own, as job control gives it)
set -m
RAY_ADDRESS="$head:$port" python -m tilth run "$@" &
run=$!
trap 'kill -INT "$run" 2>/dev/null || true' INT
set +m
code=0
wait "$run" || code=$?
# the signal ends the wait, not the run, whose nodes must outlive it
while kill -0 "$run" 2>/dev/null; do
  code=0
  wait "$run" || code=$?
done
exit "$code"
