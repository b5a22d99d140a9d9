"""What happens around the import of a package."""

import gc
import subprocess
import sys

import pytest

from dynkhydra_tf import import_hooks


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a package that is not imported yet; it notes whether Python looks for cycles meanwhile."""
    (tmp_path / "notes_the_collector.py").write_text("import gc\nsearching = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    hooks = list(sys.meta_path)
    yield "notes_the_collector"
    sys.meta_path[:] = hooks
    sys.modules.pop("notes_the_collector", None)
    gc.unfreeze()


def test_while_a_package_is_imported_python_does_not_look_for_cycles(package):
    gc.unfreeze()
    order = []

    def outer():
        order.append("outer")
        return import_hooks.uncollected()

    import_hooks.around_import(package, import_hooks.uncollected)
    import_hooks.around_import(package, outer)  # both are around it
    assert not __import__(package).searching
    assert order == ["outer"]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0  # what was imported is not looked at again


def test_a_collector_that_is_off_stays_off_and_comes_back_after_an_error():
    gc.disable()
    try:
        with import_hooks.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ImportError), import_hooks.uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


def test_a_command_imports_tensorflow_so():
    """In `cli.run`, for all commands: a fifth of a start; SciPy comes when it is asked for."""
    code = (
        "import gc, sys\n"
        "from dynkhydra_tf import cli, fields\n"
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Options(fields.Checked): pass\n"
        "def main(options):\n"
        "    import tensorflow\n"
        "    print(gc.get_freeze_count() > 100_000, gc.isenabled(), 'scipy' in sys.modules)\n"
        "    import scipy.sparse\n"
        "main.__module__ = 'dynkhydra_tf.cli'\n"
        "cli.run(main, Options, ['x'])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert told.stdout.split() == ["True", "True", "False"], told.stderr
