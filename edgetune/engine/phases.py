"""How far a build is: the library reports nested phases of unknown lengths, people want one bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """A phase that is open fills a share of its parent's current step; the outermost one is the whole build."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, index: int) -> None:
        """Step `index` of a phase, counted from 0, is over."""
        phase = self._open.get(name)
        if phase is not None:
            phase.done = min(index + 1, phase.steps)

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def fraction(self) -> float:
        """Between 0 and 1; it never falls, although the library may open a phase again."""
        outermost = next((name for name, phase in self._open.items() if phase.parent is None), None)
        if outermost is not None:
            self._reached = max(self._reached, self._share(outermost))
        return self._reached

    def _share(self, name: str) -> float:
        phase = self._open[name]
        children = [child for child, entry in self._open.items() if entry.parent == name]
        inside = sum(self._share(child) for child in children) / len(children) if children else 0.0
        return min(1.0, (phase.done + inside) / phase.steps)
