"""The report over random logs says what was really fed to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from expected import check

pytest.importorskip("duckdb")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 40, 8))]
)
def test_counts(seed: int, tmp_path: Path) -> None:
    """Whatever was rotated, killed, copied, damaged or left out, the report says what is known."""
    for number in range(seed, seed + 8):
        check(number, tmp_path / str(number))
