"""What is mended in Keras: how often saving and loading make a layer to look at."""

import keras

from dynkhydra_tf import keras_mends


def test_no_layer_is_made_for_each_layer_that_is_saved_and_loaded(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(5))])
    model.save(tmp_path / "first.keras")  # looks once at each kind
    made = []
    create = keras.layers.Layer.__init__

    def counted(layer, *args, **kwargs):
        if type(layer) is keras.layers.Layer:
            made.append(layer)
        create(layer, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__init__", counted)
    model.save(tmp_path / "second.keras")
    loaded = keras.saving.load_model(tmp_path / "second.keras")
    assert not made
    assert [weight.numpy().tolist() for weight in loaded.weights] == [
        weight.numpy().tolist() for weight in model.weights
    ]


def test_mending_twice_is_mending_once():
    from keras.src.saving import saving_lib

    before = saving_lib.get_attr_skipset
    keras_mends.mend_keras()
    assert saving_lib.get_attr_skipset is before
