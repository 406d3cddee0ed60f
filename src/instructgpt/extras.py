"""The `train` extra: what the base installation leaves out, and the line of a command that lacks it."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from packaging.requirements import Requirement
from packaging.version import Version

TRAIN_REQUIREMENTS = (
    "torch>=2.9",
    "transformers>=5.23,<5.24",
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "peft>=0.21",
    "accelerate>=1",
    "sacrebleu>=2.5",
    "rouge-score>=0.1.2",
)
"""The extra as in `pyproject.toml`, repeated because a source tree on PYTHONPATH has no metadata."""

INSTALL_COMMAND = "pip install 'instructgpt[train]'"


def _module_name(requirement: Requirement) -> str:
    return requirement.name.replace("-", "_")


_TRAIN_MODULES = {_module_name(Requirement(line)) for line in TRAIN_REQUIREMENTS}


def describe_missing_packages() -> str:
    """Say which packages of the extra are missing or outside their range; empty if the extra is installed."""
    problems = [problem for line in TRAIN_REQUIREMENTS if (problem := _describe_problem(Requirement(line)))]
    if not problems:
        return ""
    if all(problem.endswith("(not installed)") for problem in problems[:2]):
        return f"needs PyTorch and transformers, which are not installed; run: {INSTALL_COMMAND}"
    return f"needs {', '.join(problems)}; run: {INSTALL_COMMAND}"


def _describe_problem(requirement: Requirement) -> str:
    """Compare by release, so that a vendor's build such as `2.9.0a0+5228986` counts as 2.9.0."""
    if importlib.util.find_spec(_module_name(requirement)) is None:
        return f"{requirement} (not installed)"
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:  # on the path without metadata, so of an unknown version
        return ""
    if requirement.specifier.contains(Version(installed).base_version, prereleases=True):
        return ""
    return f"{requirement} (installed: {installed})"


def is_missing_package(error: BaseException) -> bool:
    """Return whether an import failed because a package of the extra is not installed."""
    return isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _TRAIN_MODULES
