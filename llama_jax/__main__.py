"""`python -m llama_jax` is `llama-jax`."""

import signal
import sys

from llama_jax.runtime import interrupts


def main() -> int:
    """Run the command of this process; returns its exit status. Signals are heard from the first
    import on: loading the rest takes a tenth of a second, and libraries a second or more."""
    interrupts.listen()
    try:
        from llama_jax.cli import main as run
    except KeyboardInterrupt:
        print(f"llama-jax: error: {interrupts.ended()}", file=sys.stderr)
        interrupts.leave(128 + (interrupts.received() or signal.SIGINT))
    return run()


if __name__ == "__main__":
    sys.exit(main())
