"""Joules that the machine has used, where it tells: RAPL of Intel and AMD processors, NVML of NVIDIA cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Reads the counters that there are; `sources` names them, none where nothing tells."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = [p for p in sorted(root.glob("*-rapl:*")) if _is_package(p)]
        self._cards = _cards()
        self._last: dict[Path, int] = {}
        self._turns: dict[Path, int] = {}
        self.sources = [p.name for p in self._packages] + [name for _, _, name in self._cards]

    def joules(self) -> float | None:
        """Since some moment: differences count. None where nothing tells."""
        if not self.sources:
            return None
        total = 0.0
        for package in self._packages:
            now = _number(package / "energy_uj") or 0
            if now < self._last.get(package, 0):  # the counter began anew
                self._turns[package] = self._turns.get(package, 0) + 1
            self._last[package] = now
            span = _number(package / "max_energy_range_uj") or 0
            total += (now + self._turns.get(package, 0) * span) / 1e6
        for nvml, card, _ in self._cards:
            total += nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
        return total


def _is_package(path: Path) -> bool:
    """A processor with its memory controller; its parts would be counted twice. Root alone may read most."""
    return path.name.count(":") == 1 and _number(path / "energy_uj") is not None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cards() -> list[tuple[Any, Any, str]]:
    """The NVIDIA cards that count their energy, by nvidia-ml-py where it is installed."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        found = []
        for i in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(i)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
            found.append((pynvml, card, f"nvml:{i}"))
        return found
    except Exception:  # no library, no driver, no such counter
        return []
