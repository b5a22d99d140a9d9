import io

import keras
import numpy as np

from dynkhydra_tf.progress import Progress
from tests.conftest import Terminal


def train(stream, clock, epochs, steps_per_epoch, first_epoch=0, steps=None, validation_seconds=0.0):
    """Tells a callback what Keras would, with 20 seconds a step."""
    callback = Progress(epochs, steps_per_epoch, stream)
    with callback:
        for epoch in range(first_epoch, epochs):
            callback.set_params({"steps": steps or steps_per_epoch, "epochs": epochs})
            callback.on_epoch_begin(epoch)
            for batch in range(steps or steps_per_epoch):
                clock.now += 20
                callback.on_train_batch_end(batch, {"loss": 2.0, "top1": 0.25})
            clock.now += validation_seconds
            logs = {"loss": 2.0, "top1": 0.25, "val_top1": 0.245, "val_active_branches": np.float32(1.5)}
            callback.on_epoch_end(epoch, logs)
            steps = None
    return stream.getvalue().splitlines()


def test_the_lines_of_a_run_in_a_file(clock):
    assert train(io.StringIO(), clock, epochs=2, steps_per_epoch=4, validation_seconds=10) == [
        # After 40 s: 2 steps of this epoch and 4 of the next at 20 s; validation is not known yet.
        "epoch 1/2, step 2/4: loss 2.00, top-1 25.0%, 0.05 steps/s, 0:40 left, 2:00 of the run",
        "epoch 1/2, step 4/4: loss 2.00, top-1 25.0%, 0.05 steps/s, 0:00 left, 1:20 of the run",
        "epoch 1/2: loss 2.000, top-1 25.0%, val top-1 24.5%, lambda 1.50, 90 s, 1:30 left",
        # An epoch takes 90 s.
        "epoch 2/2, step 2/4: loss 2.00, top-1 25.0%, 0.05 steps/s, 0:40 left, 0:50 of the run",
        "epoch 2/2, step 4/4: loss 2.00, top-1 25.0%, 0.05 steps/s, 0:00 left, 0:10 of the run",
        "epoch 2/2: loss 2.000, top-1 25.0%, val top-1 24.5%, lambda 1.50, 90 s",
    ]


def test_a_run_that_goes_on_within_an_epoch(clock):
    # One of four steps is left of epoch 2 of 4: it takes 20 s, whole ones 80 s.
    lines = train(io.StringIO(), clock, epochs=4, steps_per_epoch=4, first_epoch=1, steps=1)
    assert lines[0] == "epoch 2/4: loss 2.000, top-1 25.0%, val top-1 24.5%, lambda 1.50, 20 s, 2:40 left"
    assert "epoch 3/4, step 2/4" in lines[1] and "2:00 of the run" in lines[1]


def test_a_plain_network_has_no_lambda(clock):
    stream = io.StringIO()
    callback = Progress(1, 1, stream)
    callback.set_params({"steps": 1})
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0, {"loss": 2.0, "top1": 0.5, "val_top1": 0.5})
    assert stream.getvalue() == "epoch 1/1: loss 2.000, top-1 50.0%, val top-1 50.0%, 0.0 s\n"


def test_with_keras_on_a_terminal():
    stream = Terminal()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    top1 = keras.metrics.SparseCategoricalAccuracy("top1")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=[top1])
    images, labels = np.ones((8, 2)), np.zeros(8)
    with Progress(2, 4, stream) as callback:
        data = {"validation_data": (images, labels), "callbacks": [callback]}
        model.fit(images, labels, batch_size=2, epochs=2, verbose=0, **data)
    told = [text for text in stream.getvalue().replace("\n", "\r").split("\r") if "val top-1" in text]
    assert [text.split(":")[0] for text in told] == ["epoch 1/2", "epoch 2/2"]
