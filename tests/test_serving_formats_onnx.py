import collections
import json
import pathlib
import sys

import keras
import pytest

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.formats.onnx import check_installed, convert, to_onnx
from tests.conftest import to_serve


def test_onnx_chooses_a_branch_by_ifs_within_a_loop(make_hydra):
    pytest.importorskip("tf2onnx")
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(to_onnx(make_hydra(), 0.08)).graph
    ops = collections.Counter(node.op_type for node in graph.node)
    assert ops["Conv"] == 3  # stem, gater, combiner
    assert ops["Loop"] == 1 and ops["If"] == 0
    dimensions = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    assert {name: dims[0].dim_param for name, dims in dimensions.items()} == dict.fromkeys(
        ["images", "probabilities", "class_id", "gate", "active_branches"], "batch"
    )


def test_onnx_runs_the_convolutions_of_the_selected_branches_only(make_hydra, fix_gate, batch, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = make_hydra()
    fix_gate(model, [0.6, 0.1, 0.3])

    def convolutions(tau):
        options = runtime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = runtime.InferenceSession(to_onnx(model, tau), options)
        session.run(None, {"images": batch([0, 1])[0]})
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name", "").endswith("Conv") for event in events)

    assert convolutions(tau=0.0) == 3 + 2  # stem, gater, combiner and K = 2 branches
    assert convolutions(tau=0.35) == 3 + 1


def test_it_is_little_more_than_the_weights():
    pytest.importorskip("tf2onnx")
    keras.utils.set_random_seed(0)
    model = Hydra(ResNet(depth=1), (0, 0, 1, 1, 2, 2), top_k=2, branch_weight=0.0)
    assert len(to_onnx(model, 0.3)) < 1.1 * 4 * model.count_params()


def test_without_the_converter_one_line_says_what_to_install(make_hydra, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match="tf2onnx"):
        check_installed()
    with pytest.raises(UserError) as raised:
        convert(to_serve(make_hydra()), tmp_path / "new")
    assert str(raised.value).startswith("tf2onnx cannot be imported (")
    assert str(raised.value).endswith("pip install -e '.[onnx]'")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()
