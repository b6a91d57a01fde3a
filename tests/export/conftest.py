from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def export_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Export what code makes, with weights as if it were trained, for a user who names it first.

    Imported here, not at the top: tests without PyTorch's exporters are collected, too.
    """
    import torch
    from torch import nn

    from kdmri_edge.bring.network import bring_checkpoint
    from kdmri_edge.models.adapter import call
    from kdmri_edge.models.permission import allow_code
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe
    from tests.export.networks import lines

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")

    def make(code: str, target: str, precision: str, **options: Any) -> Any:
        torch.manual_seed(0)
        module = call(allow_code(code))
        if "last.weight" in module.state_dict():
            nn.init.normal_(module.get_submodule("last").weight, std=0.02)
        torch.save(module.state_dict(), tmp_path / "weights.pt")
        checkpoint = bring_checkpoint(code, weights=tmp_path / "weights.pt", mask=lines())
        recipe = ExportRecipe(target=target, precision=precision, **options)
        return export_model(checkpoint, recipe, tmp_path / f"{target}-{precision}")

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the parity cases that a target refuses: there is no graph to compare.

    And leave to the night those that it names for it.
    """
    left: list[pytest.Item] = []
    for item in items:
        at_night = getattr(getattr(item, "cls", None), "at_night", {})
        refuses = getattr(getattr(item, "cls", None), "refuses", None)
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        if refuses is not None and name is not None and refuses in name:
            left.append(item)
        if name is not None and name in at_night.get(getattr(item, "originalname", ""), ()):
            item.add_marker(pytest.mark.nightly)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
