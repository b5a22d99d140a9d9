import collections

import keras
import numpy as np
import pytest

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.formats import single_file
from dynkhydra_tf.serving.formats.litert import convert, run, to_litert
from tests.conftest import to_serve


def test_litert_has_an_if_for_each_branch_and_builtin_ops_only(make_hydra):
    flatbuffer_utils = pytest.importorskip("tensorflow.lite.tools.flatbuffer_utils")
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(to_litert(make_hydra(), 0.08)))
    assert [code.customCode for code in model.operatorCodes if code.customCode] == []
    main, *branches = [
        collections.Counter(flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) for op in graph.operators)
        for graph in model.subgraphs
    ]
    assert main["IF"] == 3
    assert main["CONV_2D"] == 3  # stem, gater, combiner
    assert sorted(graph["CONV_2D"] for graph in branches) == [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def resnet():
    """ResNet(1) with three branches, about a megabyte, and its flatbuffer in float32."""
    keras.utils.set_random_seed(0)
    model = Hydra(ResNet(depth=1), (0, 0, 1, 1, 2, 2), top_k=2, branch_weight=0.0)
    return model, to_litert(model, 0.3)


def test_it_begins_without_a_word(resnet, capfd, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    assert run(resnet[1])(np.zeros((2, 32, 32, 3), np.uint8))["probabilities"].shape == (2, 6)
    assert capfd.readouterr() == ("", "")


def test_float32_is_little_more_than_the_weights(resnet):
    model, litert = resnet
    assert len(litert) < 1.1 * 4 * model.count_params()


@pytest.mark.parametrize("quantize,share,error", [("float16", 1 / 2, 1e-2), ("dynamic", 1 / 4, 5e-2)])
def test_quantised_is_smaller_and_close(resnet, quantize, share, error):
    model, litert = resnet
    content = to_litert(model, 0.3, quantize)
    assert share < len(content) / len(litert) < share + 0.06
    pytest.importorskip("ai_edge_litert")
    checked = single_file.check(run(content), model, 0.3)
    assert 0 < checked.max_error < error
    assert checked.images >= 14


def test_check_of_a_model_trained_in_mixed_precision_is_against_float32(make_hydra):
    pytest.importorskip("ai_edge_litert")
    model = make_hydra(part_dtype="mixed_bfloat16")
    checked = single_file.check(run(to_litert(model, 0.08)), model, 0.08)
    assert checked.max_error < 1e-5


def test_an_unknown_quantisation_leaves_nothing_behind(make_hydra, tmp_path):
    with pytest.raises(UserError, match=r"one of float16, dynamic\. Received: quantize='int4'"):
        convert(to_serve(make_hydra(), quantize="int4"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
