#!/bin/bash
# Train on several nodes: sbatch deploy/slurm.sh   (from the root of the project, .venv made)
#SBATCH --job-name=mar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@600      # ten minutes before the end: the training saves and ends
#SBATCH --output=work/slurm-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
export MAR_NODES=$SLURM_NNODES MAR_RENDEZVOUS="$(hostname):29400"
# The first node runs DVC; the others join each stage that it starts, and end 30 s after it.
srun --wait=30 --kill-on-bad-exit=0 bash -c \
  'if [ "$SLURM_NODEID" = 0 ]; then exec dvc repro; else exec python -m stages.join; fi'
