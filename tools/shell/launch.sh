#!/usr/bin/env bash
# Start one program on one or many ranks: locally, or through Slurm.
#
#   tools/shell/launch.sh --nproc 8 -- speechssl.bin.pretrain --config conf/base.yaml ...
#   tools/shell/launch.sh --nproc 8 --nodes 4 --launcher slurm -- speechssl.bin.pretrain ...
#
# One rank runs the module directly; more go through torchrun.
set -euo pipefail

nproc=1          # ranks per node
nodes=1          # nodes
launcher=local   # local or slurm
port=29500       # rendezvous port of a run on several nodes
options=()
while (($#)) && [[ $1 != -- ]]; do options+=("$1"); shift; done
(($#)) && shift
program=("$@")
set -- "${options[@]}"
source "$(dirname "${BASH_SOURCE[0]}")/parse_options.sh"
((${#program[@]})) || { echo "launch.sh: want '-- module arguments' behind the options" >&2; exit 2; }

case $launcher in
  local)
    ((nodes == 1)) || { echo "launch.sh: --nodes $nodes wants --launcher slurm" >&2; exit 2; }
    if ((nproc == 1)); then exec python -m "${program[@]}"; fi
    exec python -m torch.distributed.run --nproc-per-node "$nproc" --standalone -m "${program[@]}" ;;
  slurm)
    # $SLURM_JOB_NODELIST is known only inside the allocation, hence the inner shell.
    # shellcheck disable=SC2016
    exec srun --nodes "$nodes" --ntasks-per-node 1 bash -c '
      nodes=$1 nproc=$2 port=$3; shift 3
      head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
      exec python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$nproc" \
        --rdzv-backend c10d --rdzv-endpoint "$head:$port" -m "$@"
    ' launch "$nodes" "$nproc" "$port" "${program[@]}" ;;
  *) echo "launch.sh: found --launcher $launcher, want local or slurm" >&2; exit 2 ;;
esac
