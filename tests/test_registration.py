"""What `import dynkhydra_tf` alone does: nothing that costs, and yet Keras knows the classes."""

import importlib
import os
import pkgutil
import subprocess
import sys

import keras
import pytest

import dynkhydra_tf
from dynkhydra_tf import registration
from tests.conftest import ROOT

RUNS = ROOT / "tests" / "made_by_0_1"


def python(script):
    """Runs a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_import_loads_nothing_and_sets_one_variable():
    python(
        "import os, sys\n"
        "os.environ.pop('TF_ENABLE_ONEDNN_OPTS', None)\n"
        "before = dict(os.environ)\n"
        "import dynkhydra_tf\n"
        "assert dict(os.environ) == {**before, 'TF_ENABLE_ONEDNN_OPTS': '1'}\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'absl'} & set(sys.modules)\n"
        "assert {'Hydra', 'ResNet', 'select_branches'} <= set(dir(dynkhydra_tf))\n"
        "assert issubclass(dynkhydra_tf.UserError, ValueError)\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'absl'} & set(sys.modules)\n"
    )


@pytest.mark.parametrize(
    "imports",
    # Keras after the package and before it; and somebody who only asked whether there is a Keras.
    [
        "import dynkhydra_tf, importlib.util; importlib.util.find_spec('keras'); import keras",
        pytest.param("import keras, dynkhydra_tf", marks=pytest.mark.slow),
    ],
)
def test_keras_opens_models_after_the_import_alone(imports):
    python(
        f"{imports}\nimport sys\n"
        "assert not any(name.startswith('dynkhydra_tf.b') for name in sys.modules)\n"
        f"model = keras.models.load_model({str(RUNS / 'hydra' / 'model.keras')!r})\n"
        "assert type(model) is dynkhydra_tf.Hydra and type(model.backbone) is dynkhydra_tf.ResNet\n"
        f"model = keras.models.load_model({str(RUNS / 'plain' / 'model.keras')!r})\n"
        "assert type(model) is dynkhydra_tf.Plain\n"
    )


def test_every_registered_class_has_a_stand_in():
    for module in pkgutil.walk_packages(dynkhydra_tf.__path__, "dynkhydra_tf."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                assert error.name == "torch"  # no extra brings it; benchmark/pytorch.py alone needs it
    registered = {
        name.partition(">")[2]: value.__module__
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith("dynkhydra_tf>")
    }
    assert registered == {name: f"dynkhydra_tf.{module}" for name, module in registration.CLASSES.items()}


def test_the_public_names():
    assert set(dynkhydra_tf.__all__) == set(dynkhydra_tf._MODULES) <= set(dir(dynkhydra_tf))
    for name in dynkhydra_tf.__all__:
        assert getattr(dynkhydra_tf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Hydras'"):
        _ = dynkhydra_tf.Hydras
