"""Siemens raw data as a scanner would write it; the fuzzing needs it, too."""

from __future__ import annotations

import pytest

pytest.importorskip("twixtools")

from experiments.written_twix import C, H, S, W, drawn, line, whole, write_twix, zero_first

__all__ = ["C", "H", "S", "W", "drawn", "line", "whole", "write_twix", "zero_first"]
