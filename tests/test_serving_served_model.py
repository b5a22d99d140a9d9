import pytest

from dynkhydra_tf.costs import hydra_costs, plain_costs
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving import served_model
from tests.conftest import TinyBackbone, to_serve


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": "abcde"}, r"There must be 6 class names\. Received: 5"),
        ({"top_classes": 7}, r"top_classes must be in 0\.\.6.*Received: top_classes=7"),
        ({"tau": 1.0}, r"tau must be in \[0, 1\).*Received: tau=1.0"),
        ({"tau": float("nan")}, "Received: tau=nan"),
        ({"tau": None}, "Received: tau=None"),
        ({"name": "a/b"}, "Received: name='a/b'"),
        ({"max_batch": 3, "batch_sizes": (1, 4)}, "max_batch must be at least 4.*Received: max_batch=3"),
    ],
)
def test_bad_settings(make_hydra, settings, message):
    with pytest.raises(ValueError, match=message):
        to_serve(make_hydra(), **settings)


def test_a_plain_network_has_no_tau():
    model = Plain(TinyBackbone(), 6)
    assert to_serve(model).tau is None and to_serve(model).image_size == 8
    with pytest.raises(ValueError, match=r"None for a plain network\. Received: tau=0\.1"):
        to_serve(model, tau=0.1)


def test_what_a_format_does_not_take_is_refused(make_hydra):
    served = to_serve(make_hydra(), quantize="float16")
    served.check_options("litert", ["quantize"])
    with pytest.raises(UserError, match=r"onnx does not take quantize, but no such option\..*='float16'"):
        served.check_options("onnx", [])


def test_limits_fit_the_network(make_hydra):
    served = to_serve(make_hydra())
    assert (served.largest_batch, served.most_pixels) == (128, 16 * 2**20)
    served = to_serve(make_hydra(), max_batch=64, max_pixels=100)
    assert (served.largest_batch, served.most_pixels) == (64, 100)
    assert to_serve(make_hydra(), batch_sizes=(1, 5000)).largest_batch == 5000


def test_most_images_follow_from_what_one_costs(make_hydra, monkeypatch):
    hydra = make_hydra()
    costs = hydra_costs(hydra)["flops"]
    image = costs["stem"] + costs["gater"] + hydra.top_k * costs["branch"] + costs["combiner"]  # as at tau 0
    for most, images in ((9, 8), (8, 8), (7.99, 4), (0.5, 1), (1000, 128)):
        monkeypatch.setattr(served_model, "MOST_FLOPS", most * image)
        served = to_serve(hydra, tau=0.9)
        assert served.largest_batch == images
        assert list(served.sizes) == [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= images]
    monkeypatch.setattr(served_model, "MOST_FLOPS", 5 * image)
    assert to_serve(hydra, max_batch=3).sizes == [1, 2]
    served = to_serve(hydra, batch_sizes=(1, 6))
    assert (served.largest_batch, served.sizes) == (6, (1, 6))
    plain = Plain(TinyBackbone(), 6)
    monkeypatch.setattr(served_model, "MOST_FLOPS", 2 * plain_costs(TinyBackbone(), 6)["flops"])
    assert to_serve(plain).largest_batch == 2
    # Costs that are known already are not counted again.
    assert to_serve(plain, costs={"flops": plain_costs(TinyBackbone(), 6)["flops"] // 2}).largest_batch == 4
