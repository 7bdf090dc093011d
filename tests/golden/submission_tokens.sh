#!/bin/bash

# Parameters
#SBATCH --account=project_465
#SBATCH --array=0-4%5
#SBATCH --chdir=/runs/paper
#SBATCH --comment=20260102-030405-0001-abcdef
#SBATCH --constraint='a100&nvme'
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterok:12:13
#SBATCH --error=/runs/paper/jobs/20260102-030405-0001-abcdef/%A_%a_batch.out
#SBATCH --export=ALL
#SBATCH --hint=multithread
#SBATCH --job-name=paper/tokens/strength=1e+06,seed=0-3f2a9c1b77de
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=END
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/paper/jobs/20260102-030405-0001-abcdef/%A_%a_batch.out
#SBATCH --partition=small
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
type module >/dev/null 2>&1 || . /etc/profile
module load LUMI
export PYTHONPATH=/runs/paper/code/0123456789ab${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
ID="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
JOB=/runs/paper/jobs/"$ID"
[ ! -L "$JOB/${ID}_submitted.pkl" ] || [ "$(readlink "$JOB/${ID}_submitted.pkl")" = ../20260102-030405-0001-abcdef/task.pkl ] || mv "$JOB" "$JOB.$(date +%s)"
mkdir -p "$JOB" && ln -sfn ../20260102-030405-0001-abcdef/task.pkl "$JOB/${ID}_submitted.pkl" || exit 1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/paper/jobs/%A_%a/%A_%a_%t_log.out --error /runs/paper/jobs/%A_%a/%A_%a_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=1 --export=ALL --cpu-bind=cores --mpi=none '/proj/my venv/bin/python' -u -m submitit.core._submit /runs/paper/jobs/%j
