import numpy as np

from dynkhydra_tf.data.sources.digits import DigitsSource
from tests.conftest import assert_random_access_agrees


def test_digits_are_split_in_thirds_of_every_class_always_alike():
    source = DigitsSource()
    assert (source.size("train"), source.size("test")) == (1198, 599)
    images, labels = (np.stack(parts) for parts in zip(*source.read("test").as_numpy_iterator(), strict=True))
    assert images.shape == (599, 8, 8, 1) and images.dtype == np.uint8
    assert (source.labels("test") == labels).all()
    assert_random_access_agrees(source, "test", [598, 0, 100])
    assert len(list(source.read("train", np.arange(1198) < 5))) == 5
    # Scikit-learn's documentation counts these images of 0 to 9; a third of each, rounded either way.
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert (np.abs(np.bincount(labels) - counts / 3) < 1).all()
    assert labels[:12].tolist() == [2, 3, 7, 0, 8, 4, 8, 4, 6, 5, 4, 9]  # seen once, to stay
    # 0..16 is scaled to 0..255: 1 is 15.9 -> 16, 8 is 127.5 -> 128 (the even one), 16 is 255.
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}
