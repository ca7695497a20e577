"""refpeft on arrays that live elsewhere, as a port: what it answers is judged as any other's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foreign import Foreign, fetch

from refpeft import arrays
from refpeft.oracle import questions
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Arithmetic, Ask
from refpeft.oracle.reply import Reply


class Remote(Foreign):
    """A Foreign array that `arrays.to_host` fetches, as it fetches CuPy's."""


arrays.register(Remote, fetch, Remote)


class Elsewhere(ReferencePort):
    """`place` brings an ndarray to where everything is computed; what is generated begins with ids of the host."""

    def __init__(self, place: Callable[[Any], Any]) -> None:
        super().__init__()
        self.place = place

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        arithmetic = Arithmetic(request.dtype, self.place, arrays.to_host)
        inputs = ask.inputs
        if ask.question != "generate":
            inputs = {name: self.place(value) if is_text(name) else value for name, value in inputs.items()}
        asked = replace(ask, output=Path(request.output), inputs=inputs)
        return Reply("ANSWERED", questions.answer(asked, arithmetic))


def is_text(name: str) -> bool:
    """Whether a question's input is no parameter or state, which the arithmetic takes itself."""
    return name in questions.INPUTS or name == "visible"
