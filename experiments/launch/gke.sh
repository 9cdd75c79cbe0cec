#!/bin/sh
# Train on GKE: a JobSet through xpk (pip install xpk), restarted when it is preempted or fails.
#
#   experiments/launch/gke.sh [--dry-run] STAGE NAME EXPERIMENT.py [--option value ...]
#   experiments/launch/gke.sh [--dry-run] follow NAME
#   experiments/launch/gke.sh [--dry-run] delete NAME
#
# STAGE is train, sft, reward, dpo, rejection, ppo, grpo, gatt or distill-context, as the experiment
# asks. Environment: PROJECT, ZONE and CLUSTER; TYPE such as v5litepod-256, v5p-128, v6e-256; SLICES (1).
# The folder is packed into an image by xpk. --dry-run prints the commands, and runs none.
set -eu
cd "$(dirname "$0")/../.."
. experiments/launch/run.sh

usage() {
    sed -n '4,6s/^#   /usage: /p' "$0" >&2
    exit 2
}
[ $# -ge 2 ] || usage
ACTION=$1 NAME=$2
shift 2
: "${PROJECT:?set PROJECT to a Google Cloud project}" "${ZONE:?set ZONE, such as us-central1-a}"
: "${CLUSTER:?set CLUSTER to a cluster made by: xpk cluster create --cluster NAME --tpu-type TYPE}"
WHERE="--project=$PROJECT --zone=$ZONE --cluster=$CLUSTER"

if is_stage "$ACTION"; then kind=train; else kind=$ACTION; fi
case $kind in
train)
    [ $# -ge 1 ] || usage
    : "${TYPE:?set TYPE, such as v5litepod-256}"
    # Exit status 1 is a failure and 75 a hang: the same command resumes. 2 is bad input: it stays.
    # The grace is what SIGTERM leaves for saving.
    # shellcheck disable=SC2086
    run xpk workload create "--workload=$NAME" $WHERE "--tpu-type=$TYPE" \
        "--num-slices=${SLICES:-1}" --base-docker-image=python:3.12 --script-dir=. \
        --max-restarts=1000 --restart-on-exit-codes=1,75 --termination-grace-period-seconds=300 \
        "--command=pip install --require-hashes -r requirements/tpu.txt && pip install --no-deps --no-build-isolation -e . && exec llama-jax $(quoted "$ACTION" "$@" | sed 's/ $//')"
    ;;
follow)
    run kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
delete)
    # shellcheck disable=SC2086
    run xpk workload delete "--workload=$NAME" $WHERE
    ;;
*) usage ;;
esac
