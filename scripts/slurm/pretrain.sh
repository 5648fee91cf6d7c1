#!/usr/bin/env bash
# A pretraining run of the paper as a SLURM job, on nodes of 8 devices; thin over franca launch.
#
#   scripts/slurm/pretrain.sh CONFIG DATA OUTPUT --time 20:00:00 [options of franca launch] [key=value …]
#
#   CONFIG                                     nodes   images a step
#   vits14_in21k, vits14_laion600m             4       32 x 64 = 2048   (not in the paper)
#   vitb14_in21k, dinov2_vitb14_in21k          4       32 x 64 = 2048
#   vitb14_laion600m                           4       32 x 64 = 2048   (not in the paper)
#   vitl14_in21k, vitl14_laion600m             8       64 x 48 = 3072
#   vitg14_in21k, vitg14_laion600m             16      128 x 24 = 3072
#
# CONFIG: a file of configs/pretrain/, without its ending. DATA: for ImageNet-21K the folder of its tars, one per class;
# for LAION-600M its shards (dataset_prep.md). OUTPUT: on the file system that the nodes share. --dry-run shows the job.
# PYTHON names another Python than the repository's own. On other machines give --nodes, --gpus-per-node and
# data.batch_size: what counts is their product, times accumulate.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config=$1 data=$2 output=$3
shift 3

case $config in
*vits14* | *vitb14*) nodes=4 ;;
*vitl14*) nodes=8 ;;
*vitg14*) nodes=16 ;;
*) echo "pretrain.sh: no run of the paper is called '$config'" >&2 && exit 2 ;;
esac
case $config in
*_in21k) source=tars ;;
*_laion600m) source=shards ;;
*) echo "pretrain.sh: '$config' names no data set: it ends in neither _in21k nor _laion600m" >&2 && exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec "${PYTHON:-$root/.venv/bin/python}" -m franca.launch --nodes "$nodes" --gpus-per-node 8 \
    --config "$root/configs/pretrain/$config.yaml" "data.source=$source" "data.path=$data" "output=$output" "$@"
