"""The project around the code: pins, packaging, the direction of imports, start-up."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["test"],
]
PACKAGES = PROJECT["tool"]["setuptools"]["package-dir"]  # import name → folder


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pins.items()}


def needed(requirements: list[str]) -> set[str]:
    """Names of all distributions that the requirements lead to, by what is installed."""
    found: set[str] = set()
    open_ends = [(Requirement(line), ("",)) for line in requirements]
    seen = set()
    while open_ends:
        requirement, extras = open_ends.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        wanted = ("", *requirement.extras)
        for line in metadata.requires(requirement.name) or []:
            open_ends.append((Requirement(line), wanted))
    return found


def test_constraints_hold_exact_public_pins_and_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    assert constraints()["torch"] == "2.13.0"


def test_every_named_dependency_has_a_pin_that_suits_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in [*REQUIREMENTS, *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        pin = constraints()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{line}, but constraints.txt has {pin}"


@pytest.mark.slow
def test_constraints_pin_all_that_is_needed_as_installed() -> None:
    pins = constraints()
    missing = sorted(needed(REQUIREMENTS) - set(pins))
    assert not missing, f"no pin in constraints.txt for {missing}"
    for name in needed(REQUIREMENTS):
        assert metadata.version(name).split("+")[0] == pins[name], f"{name}: run `make test`"


def test_the_conda_environment_has_the_same_dependencies() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, by_pip = environment["dependencies"]
    assert PROJECT["project"]["requires-python"] == ">=3.11" and python == "python=3.11"
    assert pip == "pip"
    assert by_pip["pip"] == ["--constraint constraints.txt", *REQUIREMENTS, "--editable ."]


def test_every_package_folder_is_installed() -> None:
    found = {
        name + "".join(f".{part}" for part in init.parent.relative_to(ROOT / folder).parts)
        for name, folder in PACKAGES.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


# What each package may import of the others.
ARROWS = {"dgemma_core": set(), "dgemma_lab": {"dgemma_core"}, "dgemma_evals": {"dgemma_core"}}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("package", ARROWS)
def test_imports_follow_the_plan(package: str) -> None:
    files = list((ROOT / PACKAGES[package]).rglob("*.py"))
    assert files
    for file in files:
        tops = {name.split(".")[0] for name in imported(file)}
        assert (tops & set(PACKAGES)) - {package} <= ARROWS[package], file
        assert not tops & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}, file


@pytest.mark.slow
def test_nothing_unpickles() -> None:
    for folder in PACKAGES.values():
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    pytest.fail(f"{file}:{node.lineno} calls torch.load; use safetensors")
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    assert ast.unparse(node.value) == "False", f"{file}:{node.value.lineno}"


def python(*arguments: str | Path, path: Path = ROOT) -> str:
    """What a fresh interpreter prints that looks for packages in `path` first."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    modules = json.loads(python("-c", script).splitlines()[-1])
    return {name.split(".")[0] for name in modules}


HEAVY = {"transformers", "pandas", "reasoning_gym", "huggingface_hub", "plotly", "lm_eval", "scipy"}


@pytest.mark.subprocess
def test_importing_the_core_loads_nothing_heavy_besides_torch() -> None:
    assert not loaded_by("import dgemma_core, dgemma_core.events") & HEAVY


@pytest.mark.subprocess
def test_help_needs_no_model_library() -> None:
    run = (
        "from dgemma_core.command import cli\nsys.argv = ['dgemma', '--help']\n"
        "try: cli.main()\nexcept SystemExit as end: assert end.code == 0"
    )
    assert not loaded_by(run) & (HEAVY | {"torch", "numpy"})


@pytest.mark.subprocess
@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_public_names_mean_the_same_in_any_order_of_use(order: Callable[..., list[str]]) -> None:
    import dgemma_core

    names = order(dgemma_core.__all__)
    script = f"import dgemma_core as dg\nprint({{n: type(getattr(dg, n)).__name__ for n in {names} * 2}})"
    kinds = ast.literal_eval(python("-c", script))
    assert len(kinds) == len(names)
    assert not [name for name, kind in kinds.items() if kind == "module"]


def test_every_make_target_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    named = {
        (name, file)
        for file in filter(lambda file: (ROOT / file).is_file(), listed)
        for name in re.findall(r"`make ([a-z]+)", (ROOT / file).read_text())
    }
    assert not [where for where in named if where[0] not in targets]


def make(*arguments: str) -> str:
    """What make prints, in an environment that says nothing of threads, nor of a make around this test."""
    told = ("OMP_NUM_THREADS", "MAKEFLAGS", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.subprocess
def test_the_lab_and_the_tests_run_with_one_thread_setting(tmp_path: Path) -> None:
    """Times of one are compared with times of the other. The shell of every recipe inherits it; none sets another."""
    say = ["--silent", "--eval", "threads: ; @echo $$OMP_NUM_THREADS", "threads"]
    assert make(*say) == "1\n"
    assert make(*say, "OMP_NUM_THREADS=8") == "8\n"
    commands = make("--just-print", f"VENV={tmp_path}", "lab", "test")
    assert "jupyter lab" in commands and "pytest" in commands
    assert "OMP_NUM_THREADS" not in commands


@pytest.mark.subprocess
def test_the_lab_asks_for_no_news(tmp_path: Path) -> None:
    commands = make("--just-print", f"VENV={tmp_path}", "lab")
    written = re.search(r"'(\{.*\})' > (\S+)/default_setting_overrides\.json", commands)
    assert written and written[2] == f"{tmp_path}/etc/jupyter/labconfig"
    settings = json.loads(written[1])["@jupyterlab/apputils-extension:notification"]
    assert settings == {"fetchNews": "false", "checkForUpdates": False}


def test_ci_runs_the_make_target() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make (--jobs=\d+ )?test$", script.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the tree, and an empty folder into which its wheel was installed."""
    work = tmp_path_factory.mktemp("wheel")
    tree = work / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES.values()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = ["-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    python(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", work, tree)
    (wheel,) = work.glob("*.whl")
    python(*pip, "install", *offline, "--target", work / "site", wheel)
    return tree, work / "site"


@pytest.mark.subprocess
def test_the_wheel_holds_the_three_packages_and_their_data(built: tuple[Path, Path]) -> None:
    tree, site = built
    names = ", ".join(PACKAGES)
    script = f"import {names}\nfor package in ({names}): print(package.__file__)"
    files = python("-c", script, path=site).split()
    assert [Path(file).parent for file in files] == [site / name for name in PACKAGES]
    for name, folder in PACKAGES.items():
        wanted = {file.relative_to(tree / folder) for file in (tree / folder).rglob("*.*")}
        assert wanted and not {file for file in wanted if not (site / name / file).exists()}


@pytest.mark.subprocess
def test_the_wheel_runs_nano(built: tuple[Path, Path]) -> None:
    run = ["-m", "dgemma_core.command.cli", "generate", "Spell backward:\nSTEP", "--json"]
    assert json.loads(python(*run, path=built[1]))["kept_tokens"] > 0
