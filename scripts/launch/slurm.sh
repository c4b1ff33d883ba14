#!/usr/bin/env bash
# A run that goes on when nodes die, and is queued again when it has to leave:
#   sbatch scripts/launch/slurm.sh configs/gpt2_124m.py --run.steps 20000
#SBATCH --job-name=research
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Three minutes before the end, to every task: all save at one step, and leave with status 75.
#SBATCH --signal=TERM@180
set -uo pipefail

PROCESSES=${PROCESSES:-1}          # a node
LEAST=${LEAST:-2}                  # of all nodes
# A job that is queued again keeps its number, and so finds its run.
RUN=${RUN:-runs/slurm-$SLURM_JOB_ID}

if [[ -f $RUN/config.json ]]; then
  command=(resume "$RUN")
else
  command=(train "$@" --run.directory "$RUN")
fi

status=0
# A node that dies must not take the others along: that is what --no-kill and this 0 are for.
srun --no-kill --kill-on-bad-exit=0 research launch --processes "$PROCESSES" \
  --elastic "$LEAST:$((PROCESSES * SLURM_NNODES))" -- "${command[@]}" || status=$?

if [[ $status -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
