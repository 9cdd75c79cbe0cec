#!/bin/sh
# Train on Cloud TPU VMs: queue for machines, install from the lock, run on all workers, follow
# host 0, and begin again when they are preempted, until the run is complete.
#
#   experiments/launch/tpu_vm.sh [--dry-run] STAGE NAME EXPERIMENT.py [--option value ...]
#   experiments/launch/tpu_vm.sh [--dry-run] follow NAME
#   experiments/launch/tpu_vm.sh [--dry-run] delete NAME
#
# STAGE is train, sft, reward, dpo, rejection, ppo, grpo, gatt or distill-context, as the experiment
# asks. Environment: PROJECT and ZONE; TYPE such as v5litepod-256, v5p-128, v6e-256; SLICES (1);
# SPOT=1 for machines that may be preempted, or RESERVED=1 for those of a reservation; SETUP, a
# command that every worker runs first, such as mounting a bucket; POLL, seconds between looks (60).
# --dry-run prints the commands, and runs none.
#
# The machines go on without this script; called again, it takes up where it was.
set -eu
cd "$(dirname "$0")/../.."
. experiments/launch/run.sh

usage() {
    sed -n '5,7s/^#   /usage: /p' "$0" >&2
    exit 2
}
[ $# -ge 2 ] || usage
ACTION=$1 NAME=$2
shift 2
: "${PROJECT:?set PROJECT to a Google Cloud project}" "${ZONE:?set ZONE, such as us-central1-a}"
SLICES=${SLICES:-1} POLL=${POLL:-60} SPOT=${SPOT:-} RESERVED=${RESERVED:-}
if [ -n "$SPOT" ] && [ -n "$RESERVED" ]; then
    echo "SPOT=$SPOT and RESERVED=$RESERVED: machines are one or the other, so unset one" >&2
    exit 2
fi
WHERE="--project=$PROJECT --zone=$ZONE"
QUEUE="gcloud compute tpus queued-resources"
VM="gcloud compute tpus tpu-vm"

nodes() { # NAME-0 NAME-1 ..., one a slice
    if [ "$SLICES" = 1 ]; then echo "$NAME-0"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

create() {
    : "${TYPE:?set TYPE, such as v5litepod-256}"
    case $TYPE in
    v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) echo "TYPE=$TYPE is none of v4-, v5litepod-, v5p-, v6e-" >&2 && exit 2 ;;
    esac
    if [ "$SLICES" = 1 ]; then
        set -- "--node-id=$NAME-0"
    else
        set -- "--node-count=$SLICES" "--node-prefix=$NAME"
    fi
    # shellcheck disable=SC2086
    run $QUEUE create "$NAME" $WHERE "--accelerator-type=$TYPE" "--runtime-version=$image" "$@" \
        ${SPOT:+--spot} ${RESERVED:+--reserved}
}

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, FAILED, ...; nothing if there is none
    # shellcheck disable=SC2086
    $QUEUE describe "$NAME" $WHERE "--format=value(state.state)" 2>/dev/null || true
}

delete() {
    # shellcheck disable=SC2086
    run $QUEUE delete "$NAME" $WHERE --force --quiet
}

on() { # on WORKER NODE COMMAND
    # shellcheck disable=SC2086
    run $VM ssh "$2" $WHERE "--worker=$1" "--command=$3"
}

start() { # install on every worker of every slice, then start on all
    run git archive --format=tar.gz --output=/tmp/llama_jax.tar.gz HEAD
    for node in $(nodes); do
        # shellcheck disable=SC2086
        run $VM scp /tmp/llama_jax.tar.gz "$node:" $WHERE --worker=all
        on all "$node" "mkdir -p llama_jax && tar -xzf llama_jax.tar.gz -C llama_jax && cd llama_jax
$INSTALL
${SETUP:-true}"
    done
    command=$(quoted .venv/bin/llama-jax "$ACTION" "$@" | sed "s/'/'\\\\''/g")
    for node in $(nodes); do # hosts wait for one another, but not for ever
        on all "$node" "cd llama_jax && rm -f status
nohup sh -c '${command}; echo \$? > status' > train.log 2>&1 < /dev/null &"
    done
}

# What host 0 says about the run, in a word.
LOOK="cd llama_jax 2> /dev/null && test -f train.log || { echo new; exit; }
if grep -q -e ': complete' -e ': was complete already' -e ' rounds complete' train.log; then echo complete
elif test -f status; then test \"\$(cat status)\" = 2 && echo refused || echo ended
elif pgrep -f '[.]venv/bin/llama-jax ' > /dev/null; then echo running
else echo ended; fi"

look() {
    # shellcheck disable=SC2086
    $VM ssh "$NAME-0" $WHERE --worker=0 "--command=$LOOK" 2> /dev/null || echo lost
}

if is_stage "$ACTION"; then kind=train; else kind=$ACTION; fi
case $kind in
follow) on 0 "$NAME-0" "tail -n 100 -F llama_jax/train.log" ;;
delete) delete ;;
train)
    [ $# -ge 1 ] || usage
    if [ -n "$DRY" ]; then
        create
        start "$@"
        exit
    fi
    while :; do
        case $(state) in
        "") create ;;
        SUSPENDED | FAILED) delete ;; # preempted: wait until it is gone, then queue again
        ACTIVE)
            case $(look) in
            complete) echo "complete; to give the machines back: $0 delete $NAME" && exit ;;
            refused) echo "refused: $0 follow $NAME says why" >&2 && exit 2 ;;
            new | ended) start "$@" ;; # the same command resumes
            esac
            ;;
        esac
        sleep "$POLL"
    done
    ;;
*) usage ;;
esac
