#!/bin/bash
#SBATCH --job-name=on-my-lan
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#
# A batch job whose nodes join a private LAN for as long as the job runs, beside machines elsewhere. Processes inside
# belong to the job's own cgroup only if the daemon is started by the job: so it is, on every node, in the foreground.
#
# Before: `clusternet issue NODE --valid 12h` for every node, and its key as
# ~/.config/clusternet/lab/NODE.key, beside master.toml.
set -euo pipefail

lan=$HOME/.config/clusternet/lab
instance=job$SLURM_JOB_ID

# Each node finds its own key beside the description: the one named as its host is.
srun --overlap clusternet join --foreground --name "$instance" "$lan/master.toml" &
trap 'srun --overlap clusternet leave '"$instance"' --kill' EXIT

# Until this node is in.
until clusternet status --on "$instance" >/dev/null 2>&1; do sleep 1; done

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
clusternet run --on "$instance" -- mpirun.openmpi -host "$hosts" ./job
