import collections
import json
import threading

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.formats.saved_model import open_version, read_signatures, write_endpoints
from tests.conftest import ROOT

NEW_OF = {
    "TF_NewStatus": "TF_DeleteStatus",
    "TF_NewGraph": "TF_DeleteGraph",
    "TF_StringInit": "TF_StringDealloc",
}
NEW_OF |= {"TF_NewSessionOptions": "TF_DeleteSessionOptions", "TF_AllocateTensor": "TF_DeleteTensor"}
NEW_OF |= {"TF_LoadSessionFromSavedModel": "TF_DeleteSession"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A SavedModel without a network: numbers (B) float32 -> double; words (B) string -> echo, length."""
    directory = tmp_path_factory.mktemp("model")
    numbers, words = tf.TensorSpec((None,), name="numbers"), tf.TensorSpec((None,), tf.string, name="words")

    def double(numbers):
        with tf.control_dependencies([tf.debugging.Assert(numbers[0] >= 0, ["negative"])]):
            return {"double": 2 * numbers}

    def echo(words):
        return {"echo": tf.identity(words), "length": tf.strings.length(words)}

    functions = {"serving_default": tf.function(double, [numbers]), "words": tf.function(echo, [words])}
    write_endpoints(functions, directory)
    return directory


@pytest.mark.parametrize("threads", [0, 1, 2, 127, 128, 129, 255, 256, 4096])
def test_the_number_of_threads_is_as_protobuf_writes_it(threads):
    config = tf.compat.v1.ConfigProto.FromString(native.thread_config(threads))
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (threads, threads)


def test_bfloat16_is_asked_for_as_protobuf_writes_it():
    config = tf.compat.v1.ConfigProto.FromString(native.thread_config(3) + native.BFLOAT16)
    rewriting = config.graph_options.rewrite_options
    assert config.intra_op_parallelism_threads == 3
    assert rewriting.auto_mixed_precision_onednn_bfloat16 == type(rewriting).ON
    rewriting.ClearField("auto_mixed_precision_onednn_bfloat16")
    assert not rewriting.ListFields(), "and nothing else"


@pytest.mark.parametrize("threads", [-1, 4097, 1 << 31, 1.5, "2"])
def test_a_number_of_threads_that_is_none(model_dir, threads):
    with pytest.raises(native.ModelError, match=r"threads must be a whole number in 0\.\.4096\. Received:"):
        native.SavedModel(model_dir, threads)


def test_many_threads_answer(model_dir):
    for threads in (128, 256):
        with native.SavedModel(model_dir, threads) as model:
            assert model.run({"numbers": np.float32([1, 2])})["double"].tolist() == [2, 4]


def test_the_signatures_are_those_of_the_saved_model(model_dir):
    (words,) = (model_dir / native.SIGNATURES).parent.glob("*.json")
    assert json.loads(words.read_text()) == read_signatures(model_dir)
    with native.SavedModel(model_dir) as model:
        signature = model.signatures["words"]
        assert model.signatures.keys() == {"serving_default", "words"}
        assert signature.inputs == {"words": native.Spec("words_words:0", object, (-1,))}
        assert {name: spec[1:] for name, spec in signature.outputs.items()} == {
            "echo": (object, (-1,)),
            "length": (np.int32, (-1,)),
        }


def test_closed_it_refuses_to_run(model_dir):
    model = native.SavedModel(model_dir)
    request = model.request({"numbers": np.float32([1])})
    with pytest.raises(native.ModelError, match="run it first"):
        request.outputs()
    request.run()
    model.close()
    model.close()
    for run in (request.run, lambda: model.run({"numbers": np.float32([1])})):
        with pytest.raises(native.ModelError, match="The model is closed"):
            run()
    assert request.outputs()["double"].tolist() == [2]
    request.close()
    request.close()
    for use, message in ((request.run, "The request is closed"), (request.outputs, "run it first")):
        with pytest.raises(native.ModelError, match=message):
            use()


def test_closed_while_it_runs_it_finishes_first(model_dir):
    model, answers = native.SavedModel(model_dir), []
    numbers = np.ones(1 << 20, np.float32)

    def ask():
        try:
            while True:
                answers.append(model.run({"numbers": numbers})["double"][-1])
        except native.ModelError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(answers) < 4:
        pass
    model.close()
    for thread in threads:
        thread.join()
    assert set(answers) == {2.0, "The model is closed: load it again"}


class Counting:
    """The library, which counts what is acquired and given back."""

    def __init__(self, library):
        self._library = library
        self.held = collections.Counter()

    def __getattr__(self, name):
        function = getattr(self._library, name)

        def call(*arguments):
            result = function(*arguments)
            if name in NEW_OF and (result or name == "TF_StringInit"):
                self.held[NEW_OF[name]] += 1
            if name in NEW_OF.values():
                self.held[name] -= 1
            if name == "TF_SessionRun":
                self.held["TF_DeleteTensor"] += sum(map(bool, arguments[6]))
            return result

        return call


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        ("words", {"words": np.array([b"a", "\xfc", b"\0" * 99], object)}, None),
        ("serving_default", {"numbers": np.float32([-1])}, "negative"),
        ("serving_default", {"numbers": np.complex64([1])}, "does not know: complex64"),
        ("serving_default", {"number": [1]}, "takes the inputs"),
        ("other", {}, "signature must be one of"),
        ("words", {"words": np.array(["\ud800"], object)}, "surrogates not allowed"),
    ],
)
def test_everything_acquired_is_given_back(model_dir, monkeypatch, signature, inputs, message):
    library = Counting(native._library())
    monkeypatch.setattr(native, "_library", lambda path: library)
    with native.SavedModel(model_dir) as model:
        before = library.held.copy()
        for _ in range(2):
            try:
                answer = model.run(inputs, signature)
                assert message is None and answer["length"].tolist() == [1, 2, 99]
            except (native.ModelError, UnicodeEncodeError) as error:
                assert message and message in str(error)
        assert library.held == before and before.total() == 3  # session, graph, status
        forgotten = model.request({"numbers": np.float32([1])})
        forgotten.run()
        assert library.held != before
        del forgotten
        assert library.held == before
    assert library.held.total() == 0 and set(library.held.values()) == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "Could not find SavedModel"),
        ({"threads": -1}, "threads must be"),
        ({"signatures": {"serving_default": {}}}, "does not hold the signatures of a model"),
    ],
)
def test_everything_is_given_back_where_it_cannot_be_loaded(model_dir, monkeypatch, arguments, message):
    library = Counting(native._library())
    monkeypatch.setattr(native, "_library", lambda path: library)
    with pytest.raises(native.ModelError, match=message):
        native.SavedModel(**{"path": model_dir, **arguments})
    assert library.held.total() == 0


def test_signatures_of_another_graph_are_refused(model_dir):
    record = read_signatures(model_dir)
    record["words"]["inputs"]["words"]["tensor"] = "other:0"
    message = "name other:0, which the graph does not have"
    with (
        native.SavedModel(model_dir, signatures=record) as model,
        pytest.raises(native.ModelError, match=message),
    ):
        model.run({"words": [b"a"]}, "words")


def test_an_export_of_version_0_1_opens():
    old = ROOT / "tests" / "made_by_0_1" / "served" / "digits" / "1"
    with pytest.raises(native.ModelError, match=r"exports of version 0\.1 have none, .*verify opens them"):
        native.SavedModel(old)
    with open_version(old) as model:
        answer = model.run({"images": np.zeros((2, 32, 32, 3), np.uint8)})
        assert answer["label"].shape == (2,) and answer["label"][0].decode() in "0123456789"
