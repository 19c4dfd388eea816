"""The tasks, a module each. README.md says what such a module has."""

from __future__ import annotations

from types import ModuleType

from tasks import graph, reverse

TASKS: dict[str, ModuleType] = {"reverse": reverse, "graph": graph}
