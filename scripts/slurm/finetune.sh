#!/usr/bin/env bash
# A high-resolution stage as a SLURM job, on nodes of 8 devices; thin over franca launch.
#
#   scripts/slurm/finetune.sh CONFIG FROM DATA OUTPUT --time 20:00:00 [options of franca launch] [key=value …]
#
#   CONFIG                                     nodes   images a step
#   vitb14_364                                 4       32 x 32 = 1024        then, from its output:
#   vitb14_518                                 4       32 x 16 x 2 = 1024
#   vitl14_364                                 8       64 x 16 = 1024        then, from its output:
#   vitl14_518                                 8       64 x 16 = 1024
#   vitb14_518_released                        4       32 x 16 x 2 = 1024    (in one stage, ImageNet-1K alone)
#   vitl14_518_released                        8       64 x 16 = 1024        (in one stage, ImageNet-1K alone)
#
# CONFIG: a file of configs/finetune/, without its ending. FROM: what init_from takes, such as the folder of the run
# before, or published weights; with new heads as the file's first lines say. DATA: the
# folder that holds imagenet, ADEChallengeData2016, coco, kitti and VOCdevkit (dataset_prep.md). OUTPUT: on the file
# system that the nodes share. --dry-run shows the job. PYTHON names another Python than the repository's own. On other
# machines give --nodes, --gpus-per-node and data.batch_size: what counts is their product, times accumulate.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config=$1 from=$2 data=${3%/} output=$4
shift 4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
file=$root/configs/finetune/$config.yaml
if [[ ! -f $file ]]; then
    echo "finetune.sh: there is no configs/finetune/$config.yaml" >&2 && exit 2
fi
case $config in
vitb14*) nodes=4 ;;
vitl14*) nodes=8 ;;
*) echo "finetune.sh: no size is known for '$config': start python -m franca.launch yourself" >&2 && exit 2 ;;
esac

# the sets that the file names below /path/to, below DATA
parts=$(sed -n 's/^ *- \({source: .*}\)$/\1/p' "$file" | paste -sd, -)
images=data.path=$(sed -n 's/^  path: //p' "$file")
[[ -z $parts ]] || images="data.parts=[$parts]"

exec "${PYTHON:-$root/.venv/bin/python}" -m franca.launch --nodes "$nodes" --gpus-per-node 8 --config "$file" \
    "${images//\/path\/to/"$data"}" "init_from=$from" "output=$output" "$@"
