from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> None:
    """PyTorch's exporter parses the source of all its operators anew for each graph: a third of it.

    Nothing of this project adds to its table, so that all exports of a process can share one.
    """
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))  # type: ignore[method-assign,assignment]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the parity cases that a target refuses: there is no graph to compare."""
    left: list[pytest.Item] = []
    for item in items:
        refuses = getattr(getattr(item, "cls", None), "refuses", None)
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        if refuses is not None and name is not None and refuses in name:
            left.append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
