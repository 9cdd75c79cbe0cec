"""`llama-jax chat`: a conversation in the terminal, or through pipes.

Answers go to stdout and nothing else does; the prompt and what the program says go to stderr.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.data.chat import check_text, encode_within
from llama_jax.infer.chat import Conversation, reply
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.models import Model
from llama_jax.runtime.files import reason, write_atomic

HELP = """\
/reset        forget the conversation      /system TEXT  start anew with this system text
/save FILE    write it as a line of JSON   /help         these lines
/quit         end (Ctrl-D too)             Ctrl-C        stop an answer; twice at the prompt: end
A line that begins with a space is a message, whatever it holds."""
PROMPT = "you> "


@dataclass(frozen=True)
class Settings:
    """Settings of the answers."""

    params: SamplingParams
    system: str = ""
    seed: int = 0
    """Seed of the first answer; the following answers use the following seeds."""
    json: bool = False
    """Print one JSON object per turn."""


class Chat:
    """One session: `turn` takes a line of the user's. `out` and `log` are text files.

    Raises InputError for a system text that cannot be encoded or does not fit the context.
    """

    def __init__(self, model: Model, settings: Settings, out: Any, log: Any):
        self.model, self.settings, self.out, self.log = model, settings, out, log
        self.asked = self.unseen = 0
        self.interrupted = False
        """Set from outside while an answer is drawn, to stop it."""
        self.conversation = self._anew(settings.system)

    def turn(self, line: str) -> bool:
        """Answer a message or obey a command; false when the session is over.

        Raises InputError for an impossible request, which leaves the conversation unchanged.
        """
        command, _, rest = line.strip("\r\n").partition(" ")
        rest = rest.strip()
        if command in ("/quit", "/exit"):
            return False
        if command == "/help":
            self._say(HELP)
        elif command == "/reset":
            self.conversation = self._anew(self.conversation.system)
            self._say("The conversation starts anew.")
        elif command == "/system":
            self.conversation = self._anew(rest)
            self._say("The conversation starts anew, with this system text.")
        elif command == "/save":
            self._save(rest)
        elif command.startswith("/"):
            raise InputError(f"{command} is not a command; /help lists all commands")
        elif line.strip():
            self._answer(line.strip())
        return True

    def _anew(self, system: str) -> Conversation:
        conversation, context = Conversation(system=system.strip()), self.model.config.max_seq_len
        require(
            self._encode(conversation.messages("?"), context - 1, "the system text"),
            f"the system text takes more than the model's context of {context} tokens: shorten it",
        )
        self.unseen = 0
        return conversation

    def _answer(self, question: str) -> None:
        answer = reply(
            self.model,
            self.conversation,
            question,
            self.settings.params,
            encode=self._encode,
            seed=(self.settings.seed + self.asked) % 2**32,
        )
        self.asked += 1
        self._say_unseen(answer.dropped)
        self.interrupted = False
        for piece in answer:
            if not self.settings.json:
                print(piece, end="", file=self.out, flush=True)
            if self.interrupted:
                self._say(" (stopped)")
                break
        said = {"prompt": question, "text": answer.text, "unseen_turns": answer.dropped}
        end = json.dumps(said, ensure_ascii=False) if self.settings.json else ""
        print(end, file=self.out, flush=True)
        try:
            check_text(answer.text, "answer", answer=True)
        except InputError as error:
            self._say(f"({error}; the model will not see this turn again)")
        else:
            self.conversation = answer.conversation

    def _say_unseen(self, turns: int) -> None:
        """Which turns the model has ceased to see."""
        first, self.unseen = self.unseen + 1, turns
        if first <= turns:
            which = f"turn {turns}" if first == turns else f"turns {first} to {turns}"
            context = self.model.config.max_seq_len
            self._say(f"(the model no longer sees {which}: its context is {context} tokens)")

    def _encode(self, messages, limit: int, where: str = "your message"):
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "checked before the session began"
        found = encode_within(tokenizer, messages, limit, where=where)
        return None if found is None else (found.ids, found.dropped_turns)

    def _save(self, name: str) -> None:
        require(name, "name the file: /save conversation.jsonl")
        require(self.conversation.turns, "nothing was said yet that could be saved")
        record = json.dumps({"messages": self.conversation.messages()}, ensure_ascii=False)
        try:
            write_atomic(name, (record + "\n").encode())
        except OSError as error:
            raise InputError(f"{name} cannot be written: {reason(error)}") from error
        self._say(f"Saved {len(self.conversation.turns)} turns to {name}.")

    def _say(self, text: str) -> None:
        print(text, file=self.log, flush=True)


@contextlib.contextmanager
def _until_interrupted(chat: Chat) -> Iterator[None]:
    """Ctrl-C stops an answer after its next piece: an exception could leave anything half-way. It
    is one the second time, in case the first is not looked at."""

    def interrupt(number: int, frame: Any) -> None:
        if chat.interrupted:
            raise KeyboardInterrupt
        chat.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGINT, before)


def run(model: Model, settings: Settings) -> None:
    """Talk until /quit or the end of the input; one line is one message.

    Raises InputError if the model has no tokenizer or writes no text, or the system text is
    invalid. An impossible request is reported at a terminal; through a pipe, where lines and
    answers would no longer match, it is raised.
    """
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    if model.config.head != "language":
        raise InputError("this is a reward model: it scores answers and writes none")
    chat = Chat(model, settings, sys.stdout, sys.stderr)
    if not sys.stdin.isatty():
        all(map(chat.turn, sys.stdin))
        return
    print("Talk to the model; /help lists commands.", file=sys.stderr, flush=True)
    for line in _typed():
        with _until_interrupted(chat):
            try:
                if not chat.turn(line):
                    return
            except InputError as error:
                print(error, file=sys.stderr, flush=True)


def _typed() -> Iterator[str]:
    """Lines from the terminal, with history and editing, until Ctrl-D or Ctrl-C twice."""
    try:
        import readline  # gives input() its history and editing

        readline.set_auto_history(True)
    except ImportError:
        pass
    interrupted = False
    while True:
        try:
            if not sys.stdout.isatty():  # input() would write the prompt among the answers
                print(PROMPT, end="", file=sys.stderr, flush=True)
            line = input(PROMPT if sys.stdout.isatty() else "")
            interrupted = False
            yield line
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if interrupted:
                print(file=sys.stderr)
                return
            interrupted = True
            print("\n(Ctrl-C again, or /quit, ends)", file=sys.stderr, flush=True)
