"""Imports go down: which package may import which, and that none climbs."""

import ast
import graphlib
import pathlib
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = "dynkhydra_tf"
# Each line imports only from the lines above it; those of one line do not import each other.
ORDER = """
errors paper_numbers machine memory tuning import_hooks quiet
files tables fields registration keras_mends depthwise normalisation meter flop_count photo_files answers
settings caches predictions printed_answers tf_config
flags applications averaging workers distribution
cli gating routing losses heads targets optimisation
backbones
folding model_parts reports data
classification sizing agreement
image_classifier
hydra plain
frozen_maps unfreezing
stages
partition
runs progress figures
training upcycling distillation regression
costs
accuracy
evaluation cut_list launch
serving
benchmark paper
analysis
__init__
train export predict
frontier demo
__main__
"""
LEVELS = {name: level for level, line in enumerate(ORDER.split("\n")) for name in line.split()}


def imports_of(root: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """Returns {module: [(module it imports, "file:line"), ...]}, those inside functions too; only our own."""
    files = [*root.glob("*.py"), *(root / PACKAGE).rglob("*.py")]
    modules = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    return {name: list(_imports(root, file, modules)) for name, file in modules.items()}


def _imports(root, file, modules):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        place = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            # `import dynkhydra_tf` alone sets what TensorFlow reads; it takes nothing from the package.
            yield from ((name.name, place) for name in node.names if name.name.startswith(f"{PACKAGE}."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place}: name the package in full"
            if node.module.partition(".")[0] == PACKAGE:
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    yield (inner if inner in modules else node.module), place


def place_of(module: str) -> str:
    """Returns the name in `ORDER` that a module belongs to."""
    if module == PACKAGE:
        return "__init__"
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE else parts[0]


def climbing(root: pathlib.Path) -> list[str]:
    """Returns "file:line: A imports B" of each import that does not go down."""
    return [
        f"{place}: {place_of(module)} imports {place_of(imported)}"
        for module, found in imports_of(root).items()
        for imported, place in found
        if place_of(module) != place_of(imported) and LEVELS[place_of(module)] <= LEVELS[place_of(imported)]
    ]


def test_every_module_has_its_place():
    unplaced = {place_of(module) for module in imports_of(ROOT)} - LEVELS.keys()
    assert not unplaced, f"say in ORDER where they belong: {', '.join(sorted(unplaced))}"


def test_no_import_climbs():
    assert climbing(ROOT) == []


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: {name for name, _ in found} for module, found in imports_of(ROOT).items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the modules of the circle


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("costs", "from dynkhydra_tf.paper import report", "costs.py:2: costs imports paper"),
        ("costs", "from dynkhydra_tf import evaluation", "costs.py:2: costs imports evaluation"),
        ("partition/make", "import dynkhydra_tf.hydra, os", None),
        ("data/catalog", "import dynkhydra_tf.runs", "data/catalog.py:2: data imports runs"),
        ("data/catalog", "import dynkhydra_tf.partition.make", "data/catalog.py:2: data imports partition"),
        ("hydra", "from dynkhydra_tf import Hydra", "hydra.py:2: hydra imports __init__"),
        ("hydra", "import dynkhydra_tf", None),
    ],
)
def test_a_planted_import_is_found(tmp_path, module, line, told):
    for name in ("__init__", "hydra", "paper/report", "partition/make", "evaluation", "runs", module):
        path = tmp_path / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / PACKAGE / f"{module}.py").write_text(f"def inside():\n    {line}\n")
    assert climbing(tmp_path) == ([f"{PACKAGE}/{told}"] if told else [])


def test_counting_costs_needs_no_scikit_learn_scipy_or_matplotlib():
    # Keras loads all three where they are installed, so they are taken away here.
    script = (
        "import runpy, sys\n"
        "for name in ('sklearn', 'scipy', 'matplotlib'): sys.modules[name] = None\n"
        "sys.argv = ['costs', '--flagfile=configs/cifar100.cfg', '--depths=1']\n"
        "runpy.run_module('dynkhydra_tf.costs', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MFLOPs for one image" in done.stdout


def test_commands_load_keras_only_when_they_work():
    commands = ["paper.report", "paper.reproduce", "benchmark.__main__", "benchmark.latency"]
    commands += ["analysis.embedding", "analysis.interpolation", "costs"]
    script = "import sys\n" + "".join(f"import dynkhydra_tf.{name}\n" for name in commands)
    script += "print({'keras', 'tensorflow', 'sklearn', 'matplotlib'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "none\n", done.stderr[-2000:]


@pytest.mark.parametrize("name", ["latency", "report", "reproduce"])
def test_earlier_names_of_commands_still_work(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module(f"dynkhydra_tf.analysis.{name}", run_name="__main__")
    assert leaving.value.code == 0
    assert f".{name} " in capsys.readouterr().out
