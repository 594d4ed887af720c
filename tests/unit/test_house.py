"""What holds the house up: directions of imports, sizes, public names, a quiet import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import draftless

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "draftless"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# What a part may import, itself apart. Modules directly under `draftless` are leaves, except for
# the API, which puts engine and drafters together, and for those that have a line here.
API = {"__init__", "model"}
MAY_IMPORT = {
    "leaf": {"leaf"},
    "engine": {"leaf"},
    "drafters": {"leaf", "engine"},
    "training": {"leaf"},
    "api": {"leaf", "engine", "drafters"},
    "regenerate": {"leaf", "api"},
    "calibration": {"leaf", "engine", "drafters", "api"},
    "bench": {"leaf", "engine", "drafters", "api"},
    "serve": {"leaf", "engine", "drafters", "api"},
    "cli": {
        "leaf",
        "engine",
        "drafters",
        "training",
        "api",
        "regenerate",
        "calibration",
        "bench",
        "serve",
    },
}

# The only files that may rely on how `transformers` works inside.
INSIDERS = {"engine/target.py", "engine/load.py", "engine/cache.py", "engine/attention.py"}
INTERNAL_NAMES = {"AttentionInterface", "AttentionMaskInterface", "Cache", "DynamicCache"}
PUBLIC_MODULES = (
    "transformers",
    "transformers.generation",
    "transformers.trainer_utils",
    "transformers.utils",
)

PUBLIC_NAMES = {
    "ArtifactError",
    "CapabilityError",
    "Chunk",
    "ConfigError",
    "DraftTree",
    "Drafter",
    "Draftless",
    "DraftlessError",
    "InputError",
    "Output",
    "Row",
    "SamplingParams",
    "Statistics",
    "StepRecord",
    "Verdict",
    "__version__",
    "embedded_model_path",
}


def part_of(module: str) -> str:
    """The part that a dotted module name belongs to."""
    names = module.split(".")[1:]
    if not names or names[0] in API:
        return "api"
    if names[0] == "__main__":
        return "cli"
    return names[0] if names[0] in MAY_IMPORT else "leaf"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """All (module, name) imports, those inside functions and TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            yield from ((node.module or "", alias.name) for alias in node.names)


def imported_modules(source: str) -> set[str]:
    """Draftless modules that a source imports; `from draftless import engine` counts as engine."""
    modules = set()
    for module, name in imports_of(ast.parse(source)):
        if module.split(".")[0] != "draftless":
            continue
        is_part = module == "draftless" and (
            (PACKAGE / f"{name}.py").exists() or (PACKAGE / str(name)).is_dir()
        )
        modules.add(f"draftless.{name}" if is_part else module)
    return modules


def wrong_directions(module: str, source: str) -> set[str]:
    """Imports that point the wrong way."""
    part = part_of(module)
    allowed = MAY_IMPORT[part] | {part}
    return {other for other in imported_modules(source) if part_of(other) not in allowed}


def inside_knowledge(source: str) -> set[str]:
    """Internals of `transformers` that a source imports."""
    found = set()
    for module, name in imports_of(ast.parse(source)):
        if module.split(".")[0] != "transformers":
            continue
        is_public = module in PUBLIC_MODULES or module.startswith("transformers.generation.")
        if not is_public or name in INTERNAL_NAMES:
            found.add(f"{module}.{name}")
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "recipes", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_directions(module_name(path), path.read_text()) == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("draftless.types", "from draftless.engine.loop import Loop"),
        ("draftless.engine.loop", "def f():\n    from draftless.drafters import registry"),
        ("draftless.engine.loop", "from draftless import drafters"),
        ("draftless.drafters.ngram", "import draftless"),
        ("draftless.training.trainer", "import draftless.engine.target"),
        ("draftless.model", "from draftless.cli import main"),
    ],
)
def test_a_wrong_direction_is_seen(module: str, source: str) -> None:
    assert wrong_directions(module, source)


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_only_the_insiders_know_the_inside_of_transformers(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) not in INSIDERS:
        assert inside_knowledge(path.read_text()) == set()


def test_inside_knowledge_is_seen() -> None:
    assert inside_knowledge("from transformers.models.llama import modeling_llama")
    assert inside_knowledge("from transformers import DynamicCache")
    assert not inside_knowledge("from transformers import AutoTokenizer")


@pytest.mark.parametrize("path", ALL_FILES, ids=ids)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_public_names_are_pinned() -> None:
    """A new public name is a decision: add it here and in the README."""
    assert set(draftless.__all__) == PUBLIC_NAMES
    assert all(hasattr(draftless, name) for name in PUBLIC_NAMES)


# Server, plots and training, and what they bring along; hidden as if they were not installed
# (transformers itself imports accelerate where it finds it).
EXTRAS = (
    "accelerate",
    "trl",
    "peft",
    "datasets",
    "fastapi",
    "uvicorn",
    "matplotlib",
    "ray",
    "gguf",
)

IMPORT_AND_REPORT = """
import json, sys

class Hiding:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXTRAS:
            return None
        return self.finder.find_spec(name, path, target)

EXTRAS = sys.argv[1:]
sys.meta_path = [Hiding(finder) for finder in sys.meta_path]

from transformers import AttentionInterface, AttentionMaskInterface

def tables():
    return {
        f"{cls.__name__}.{key}": f"{value.__module__}.{value.__qualname__}"
        for cls in (AttentionInterface, AttentionMaskInterface)
        for key, value in cls._global_mapping.items()
    }

before = tables()
import draftless
for name in draftless.__all__:  # names are imported when they are first used
    getattr(draftless, name)
print("REPORT" + json.dumps({
    "imported_extras": [name for name in EXTRAS if name in sys.modules],
    "is_unchanged": before == tables() and len(before) > 2,
}))
"""


def test_importing_is_quiet() -> None:
    """No extra is imported, nothing in transformers is patched, nothing is printed."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_REPORT, *EXTRAS], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    said, _, report = result.stdout.partition("REPORT")
    assert (said, result.stderr) == ("", "")
    assert json.loads(report) == {"imported_extras": [], "is_unchanged": True}


def test_help_waits_for_no_torch() -> None:
    source = "import sys, draftless.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_only_training_imports_extras() -> None:
    """The static half: not even inside a function that the import above does not reach."""
    for path in SOURCES:
        modules = {module.split(".")[0] for module, _ in imports_of(ast.parse(path.read_text()))}
        name = module_name(path)
        is_exempt = part_of(name) in {"training", "serve", "bench", "calibration"}
        # `wrapped` loads adapters, where peft is there.
        if not is_exempt and name not in {"draftless.cli.train", "draftless.wrapped"}:
            assert modules.isdisjoint(EXTRAS), path
