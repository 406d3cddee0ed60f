#!/usr/bin/env bash
# One stage on several hosts with plain torchrun. Give the same command on every host, each with its own number:
#
#   HOSTS=2 HOST=0 FIRST=10.0.0.1 recipes/cluster/torchrun.sh sft --base BASE --data demonstrations.jsonl --out /shared/runs/sft
#   HOSTS=2 HOST=1 FIRST=10.0.0.1 recipes/cluster/torchrun.sh sft --base BASE --data demonstrations.jsonl --out /shared/runs/sft
#
# --out, the models and the data are on a disk that all hosts share. If a host is lost, give the same commands again.
set -euo pipefail

: "${HOSTS:?how many hosts there are}"
: "${HOST:?the number of this host, from 0}"
: "${FIRST:?the address of host 0, as the others reach it}"
RANKS=${RANKS:-gpu}      # ranks on this host: one for each GPU, or a number (for CPUs, one for each core)
PORT=${PORT:-29500}      # free on host 0, and open to the others
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280} # seconds from SIGTERM on, to finish a step and keep it
# More than one network? Name the one between the hosts: export NCCL_SOCKET_IFNAME=eth1 GLOO_SOCKET_IFNAME=eth1

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$HOSTS" --node-rank "$HOST" --nproc-per-node "$RANKS" \
    --master-addr "$FIRST" --master-port "$PORT" -m instructgpt "$@"
