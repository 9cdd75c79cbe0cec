# shellcheck shell=sh
# Sourced by the launchers: `run CMD...` prints a command as it could be pasted, and runs it unless
# the launcher was called with --dry-run. `install` is what a machine does once.

# What both machines' launchers start: a command of llama-jax that trains.
is_stage() {
    case $1 in
    train | sft | reward | dpo | rejection | ppo | grpo | gatt | distill-context) ;;
    *) return 1 ;;
    esac
}

DRY=""
if [ "${1:-}" = --dry-run ]; then
    DRY=1
    shift
fi

quoted() {
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=@,~-]* | "") printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
}

run() {
    quoted "$@" | sed 's/ $//'
    echo
    [ -n "$DRY" ] || "$@"
}

# The locked requirements on a Python of their own; TPU VM images carry an older one.
# shellcheck disable=SC2034
INSTALL='test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -x .venv/bin/llama-jax || {
    ~/.local/bin/uv venv --python 3.12 .venv &&
    ~/.local/bin/uv pip install --python .venv --require-hashes -r requirements/tpu.txt &&
    ~/.local/bin/uv pip install --python .venv --no-deps --no-build-isolation -e .
}'
