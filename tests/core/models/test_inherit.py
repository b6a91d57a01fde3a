"""A student starts with its teacher's ends, and learns the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdmri_edge.errors import ModelError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.initialisation import inherit_ends
from kdmri_edge.models.specs import preset


@pytest.mark.parametrize(("big", "small"), [("dccnn-d5c5", "dccnn-d3c5"), ("vdsr-11", "vdsr-7")])
def test_the_ends_are_the_teachers_and_the_middle_is_not(big: str, small: str) -> None:
    teacher, student = build_model(preset(big)), build_model(preset(small))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    inherit_ends(student, teacher)
    theirs, convs = teacher.state_dict(), preset(small).convs
    shift = preset(big).convs - convs
    for name, tensor in student.state_dict().items():
        head, number, kind = name.rsplit(".", 2)
        if int(number) in (0, convs - 1):
            other = int(number) if int(number) == 0 else int(number) + shift
            assert torch.equal(tensor, theirs[f"{head}.{other}.{kind}"])
        else:
            assert torch.equal(tensor, before[name])
    inherit_ends(student, teacher)
    with torch.no_grad():  # a copy, not a share
        next(student.parameters()).add_(1)
    assert not torch.equal(next(student.parameters()), next(teacher.parameters()))


def test_other_widths_are_refused() -> None:
    teacher = build_model(preset("dccnn-d5c5"))
    narrow = build_model(replace(preset("dccnn-d3c5"), width=16))
    with pytest.raises(ModelError, match="other sizes"):
        inherit_ends(narrow, teacher)
    fewer = build_model(replace(preset("dccnn-d3c5"), cascades=4))
    with pytest.raises(ModelError, match="other sizes"):
        inherit_ends(fewer, teacher)
