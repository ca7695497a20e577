"""Where a wrong answer begins: stages without golden values, compared with refpeft's own (clause JG-6)."""

from __future__ import annotations

import msgspec
import numpy

from refpeft.oracle import names, questions
from refpeft.oracle.budget import Floor, Profile
from refpeft.oracle.compare import Difference, compare
from refpeft.oracle.floors import floors_of_stages
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Tensor, Vector


def localised(
    vector: Vector, ask: Ask, profile: Profile, answer: Answer, differences: list[Difference], valid: Validity
) -> list[Difference]:
    """With refpeft's own stages where there is no golden value, so that the first difference is found early (JG-6)."""
    extra = [name for name in answer.tensors if name not in vector.case.tensors and names.step_of(name)]
    if not extra:
        return differences
    wanted, measured = questions.answer(ask).tensors, floors_of_stages(vector, profile)
    by_name = {d.name: d for d in differences}
    for name in extra:
        step = names.step_of(name)
        if step is not None and name in wanted:
            tensor, truth = Tensor(step.kind, list(step.axes)), numpy.asarray(wanted[name])
            floor, given = measured.get(name, Floor(0.0, 0.0)), answer.tensors[name]
            found = compare(name, tensor, given, truth, floor, profile, valid, "refpeft")
            by_name[name] = msgspec.structs.replace(found, golden=False)
    ordered = [by_name.pop(name) for name in wanted if name in by_name]
    return [*by_name.values(), *ordered]
