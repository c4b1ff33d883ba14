#!/usr/bin/env bash
# Asynchronous workers on a Ray cluster that is there (`ray up`, KubeRay, `ray start`), as its job:
#   RAY_ADDRESS=http://head:8265 scripts/launch/ray_job.sh configs/digits_server.py --run.steps 9000
# Submitted again with the same RUN it goes on. The cluster's machines have this package installed,
# and share the folder of RUN.
set -euo pipefail

RUN=${RUN:-runs/ray-$(date +%Y%m%d-%H%M%S)}  # an absolute path, or below the job's folder
CPUS=${CPUS:-1}                              # of a worker
GPUS=${GPUS:-0}                              # of a worker

: "${RAY_ADDRESS:?is where the dashboard of the cluster answers, such as http://head:8265}"

# What runs on the head: only there it is known whether RUN was begun.
entrypoint='
  if [[ -f $RUN/config.json ]]; then words=(resume "$RUN"); else
    words=(train "$@" --run.directory "$RUN"); fi
  exec research launch --engine ray --worker-cpus "$CPUS" --worker-gpus "$GPUS" -- "${words[@]}"
'
exec ray job submit --submission-id "research-$(basename "$RUN")-$(date +%s)" -- \
  env RUN="$RUN" CPUS="$CPUS" GPUS="$GPUS" bash -c "$entrypoint" research "$@"
