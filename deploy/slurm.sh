#!/bin/bash
# Train on several nodes: sbatch deploy/slurm.sh   (from the root of the project, .venv made)
#SBATCH --job-name=mar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600    # ten minutes before the end, to this script
#SBATCH --output=slurm-%j.log
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
export PATH="$PWD/.venv/bin:$PATH"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not take it over by itself
export MAR_NODES=$SLURM_NNODES MAR_RENDEZVOUS="$(hostname):29400"
# USR1 goes on to the stages, which save and end; DVC ignores it. Then the job is queued again.
again=
trap 'again=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1
# The first node runs DVC; the others join each stage that it starts, and end 30 s after it.
srun --wait=30 --kill-on-bad-exit=0 bash -c \
  'trap "" USR1; if [ "$SLURM_NODEID" = 0 ]; then exec dvc repro; else exec python -m stages.join; fi' &
wait $!
code=$?
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done  # the trap has ended the first wait
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
