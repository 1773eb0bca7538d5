"""Terminal: how the command speaks; answers on stdout, all else on stderr."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from zdm_pipelines.model.errors import SpecError, ZdmError
from zdm_pipelines.model.names import in_one_line
from zdm_pipelines.verbs.failures import as_shown

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

# In a pipe or a log nothing is cut to the width of a terminal that is not there.
_WIDTH = None if "COLUMNS" in os.environ else 140

P = ParamSpec("P")
R = TypeVar("R")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and _WIDTH:
        console.width = _WIDTH
    return console


def out() -> Console:
    """The console on stdout, where answers go."""
    return _console(stderr=False)


@dataclasses.dataclass(frozen=True)
class _Harmless:
    """What is printed, without the control characters that a name may hold: a terminal would obey them."""

    answer: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.answer, options):
            lines = (in_one_line(line) for line in segment.text.split("\n"))
            yield segment if segment.control else Segment("\n".join(lines), segment.style)


def show(answer: RenderableType) -> None:
    """Print an answer; where there is no terminal, without the blanks that fill its lines."""
    console = out()
    if console.is_terminal:
        console.print(_Harmless(answer))
        return
    with console.capture() as text:
        console.print(_Harmless(answer))
    typer.echo("\n".join(line.rstrip() for line in text.get().splitlines()))


def err() -> Console:
    """The console on stderr, where errors, progress and questions go."""
    return _console(stderr=True)


def verb(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors are one message on stderr: exit status 2 for a wrong declaration or call, else 1."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SpecError as error:
            fail(str(error), status=MISUSED)
        except ZdmError as error:
            fail(str(error), status=FAILED)
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(DONE) from None
        except KeyboardInterrupt:
            fail("stopped", status=INTERRUPTED)
        except Exception as error:
            if (shown := as_shown(error)) is None:
                raise
            fail(str(shown), status=FAILED)

    return guarded


def fail(message: str, *, status: int) -> NoReturn:
    """Say what is wrong and leave."""
    err().print(_Harmless(Text.assemble(("zdm: ", "bold red"), message)), soft_wrap=True)
    raise typer.Exit(status)


def note(message: str, style: str = "yellow") -> None:
    """A remark that is no part of the answer."""
    err().print(_Harmless(Text(message, style=style)), soft_wrap=True)


def as_json(value: object) -> None:
    """A value for scripts: one JSON document on stdout."""
    typer.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return value.isoformat() if isinstance(value, datetime) else str(value)


def statements(console: Console | None = None) -> Callable[[str], None]:
    """What a phase is given to tell its statements to: each by its first line, a repeated one once."""
    console = console or err()
    return _teller(lambda text: _print_line(console, text))


def remarks(console: Console) -> Callable[[str], None]:
    """What a phase is given that tells no statements: what it says in full, what is repeated once."""
    return _teller(lambda text: console.print(Text(f"  {text}", style="yellow"), soft_wrap=True))


def _teller(say: Callable[[str], None]) -> Callable[[str], None]:
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text and text != last:
            last = text
            say(text)

    return tell


def _print_line(console: Console, text: str) -> None:
    console.print(Text(f"  {text.splitlines()[0]}", style="dim"), no_wrap=True, overflow="ellipsis")


def sql(text: str) -> RenderableType:
    """SQL in colour on a terminal, as it is elsewhere."""
    if not out().is_terminal:
        return Text(text)
    return Syntax(text, "postgresql", theme="ansi_dark", background_color="default", word_wrap=True)


def stop_when_told() -> None:
    """Let SIGTERM end a verb as Ctrl-C does: at the next batch, with everything tidied up."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # A script's background jobs inherit "ignore", and could only be killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
