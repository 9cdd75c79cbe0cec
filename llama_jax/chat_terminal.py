"""`llama-jax chat`: a conversation in the terminal, or through pipes."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.config import InputError
from llama_jax.data.chat import check_text, encode_within
from llama_jax.data.files import reason, write_atomic
from llama_jax.infer.chat import Conversation, reply
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.models import Model

HELP = """\
/reset        forget the conversation      /system TEXT  start anew with this system text
/save FILE    write it as a line of JSON   /help         these lines
/quit         end (Ctrl-D too)             Ctrl-C        stop an answer; twice at the prompt: end"""
PROMPT = "you> "


@dataclass(frozen=True)
class Settings:
    """How the model answers."""

    params: SamplingParams
    system: str = ""
    seed: int = 0


class Chat:
    """One session: `turn` takes a line of the user's. `out` and `log` are text files."""

    def __init__(self, model: Model, settings: Settings, out: Any, log: Any):
        self.model, self.settings, self.out, self.log = model, settings, out, log
        self.conversation = Conversation(system=settings.system)
        self.asked = 0

    def turn(self, line: str) -> bool:
        """Answer a message or obey a command; false when the session is over."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if not line.strip():
            return True
        if command == "/help":
            self._say(HELP)
        elif command == "/reset":
            self.conversation = Conversation(system=self.conversation.system)
            self._say("The conversation starts anew.")
        elif command == "/system":
            self.conversation = Conversation(system=rest.strip())
            self._say("The conversation starts anew, with this system text.")
        elif command == "/save":
            self._save(rest.strip())
        elif command.startswith("/"):
            self._say(f"{command} is no command; /help lists them.")
        else:
            self._answer(line.strip())
        return True

    def _answer(self, question: str) -> None:
        try:
            answer = reply(
                self.model,
                self.conversation,
                question,
                self.settings.params,
                encode=self._encode,
                seed=(self.settings.seed + self.asked) % 2**32,
            )
            if answer.dropped:
                turns = "turn" if answer.dropped == 1 else f"{answer.dropped} turns"
                self._say(f"(the context is full: the model no longer sees the oldest {turns})")
            try:
                for piece in answer:
                    print(piece, end="", file=self.out, flush=True)
            except KeyboardInterrupt:
                self._say(" (stopped)")
            print(file=self.out, flush=True)
        except InputError as error:
            self._say(str(error))
            return
        self.asked += 1
        try:
            check_text(answer.text, "answer", answer=True)
        except InputError as error:
            self._say(f"({error}; the model will not see this turn again)")
        else:
            self.conversation = answer.conversation

    def _encode(self, messages, limit: int):
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "checked before the session began"
        found = encode_within(tokenizer, messages, limit, where="your message")
        return None if found is None else (found.ids, found.dropped_turns)

    def _save(self, name: str) -> None:
        if not name:
            self._say("Name the file: /save conversation.jsonl")
            return
        record = json.dumps({"messages": self.conversation.messages()}, ensure_ascii=False)
        try:
            write_atomic(Path(name).expanduser(), (record + "\n").encode())
        except OSError as error:
            self._say(f"{name} cannot be written: {reason(error)}")
        else:
            self._say(f"Saved {len(self.conversation.turns)} turns to {name}.")

    def _say(self, text: str) -> None:
        print(text, file=self.log, flush=True)


def run(model: Model, settings: Settings) -> None:
    """Talk until /quit or the end of the input; one line is one message.

    Answers go to stdout and all else to stderr. Raises InputError if the model has no tokenizer or
    writes no text.
    """
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    if model.config.head != "language":
        raise InputError("this is a reward model: it scores answers and writes none")
    chat = Chat(model, settings, sys.stdout, sys.stderr)
    interactive = sys.stdin.isatty()
    if interactive:
        print("Talk to the model; /help lists commands.", file=sys.stderr, flush=True)
    for line in _lines(interactive):
        if not chat.turn(line):
            return


def _lines(interactive: bool) -> Iterator[str]:
    """What the user types, with history and editing in a terminal."""
    if not interactive:
        yield from sys.stdin
        return
    try:
        import readline  # gives input() its history and editing

        readline.set_auto_history(True)
    except ImportError:
        pass
    interrupted = False
    while True:
        try:
            yield input(PROMPT)
            interrupted = False
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if interrupted:
                print(file=sys.stderr)
                return
            interrupted = True
            print("\n(Ctrl-C again, or /quit, ends)", file=sys.stderr, flush=True)
