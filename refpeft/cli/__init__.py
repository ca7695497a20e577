"""The command line: parses, calls the oracle, prints. Heavy modules are imported by the commands that need them.

Exit status (clause JG-8): 0 conforms; 1 does not; 2 wrong usage; 3 the port could not be run; 4 nothing was decided. Beside
them: 130 ended from the keyboard; 74 the report could not be written.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import click

from refpeft.cli.check import check
from refpeft.cli.common import CANNOT_WRITE
from refpeft.cli.files import export, init, judge
from refpeft.cli.fuzz import fuzz
from refpeft.cli.look import explain, list_, smoke, tour
from refpeft.cli.own import answer, inspect
from refpeft.cli.reports import diff, report
from refpeft.cli.verify import verify_statement

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name))
"""What the system says when a disk has no room, or is broken."""


class Commands(click.Group):
    """The commands; where nothing can be written, they end with one line and a status of its own."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in FULL:
                raise
            click.echo(f"Error: can't write {_where(error)}: {error.strerror}.", err=True)
            sys.exit(CANNOT_WRITE)


def _where(error: OSError) -> str:
    return f"'{error.filename}'" if error.filename else "the output"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="refpeft", prog_name="refpeft")
def main() -> None:
    """Does a port of Prompt Tuning or Prefix Tuning compute what HF peft computes?

    \b
      refpeft check                  judge refpeft itself against HF peft's golden vectors
      refpeft check -- ./my_port     judge a program that speaks the protocol (specs/protocol.md)
      refpeft check module:object    judge a Python object
      refpeft fuzz -- ./my_port      search for a question that it answers wrongly, and shrink it
      refpeft smoke -- ./my_port     does it speak the protocol at all? values are not judged
      refpeft init python            write the beginning of a port: it speaks the protocol, and one answer conforms
      refpeft export DIRECTORY       questions as files; `refpeft judge DIRECTORY` judges what a port answers there
    """  # noqa: D301  (\b is click's mark for text that keeps its lines)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a sign must not end the run


_ASKING = (check, fuzz, export, judge, smoke, init)
_LOOKING = (list_, explain, tour, answer, inspect, report, diff, verify_statement)
for _command in (*_ASKING, *_LOOKING):
    main.add_command(_command)
