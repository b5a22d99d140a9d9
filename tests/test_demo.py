"""The page to play with: what it asks and says; in a browser, where there is one."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dynkhydra_tf import demo
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def network(make_hydra, fix_gate, tmp_path):
    """Of a Hydra whose gate says 0.6, 0.3, 0.1 to any image; K = 2."""
    model = make_hydra(tau=0.2, class_names=NAMES, picture_fit="stretch")
    fix_gate(model, (0.6, 0.3, 0.1))
    model.save(tmp_path / "model.keras")
    return demo.of_model(demo.Options(model=str(tmp_path / "model.keras")))


def test_tau_says_which_branches_run(network, photo):
    assert network.tau == 0.2 and network.clusters == [["ant", "bee"], ["cat", "dog"], ["eel", "fox"]]
    answer, ms = network.answer(photo, 0.2)
    assert answer.branches == (0, 1) and ms > 0
    assert len(answer.top) == demo.TOP and {label for label, _ in answer.top} <= set(NAMES)
    answer, _ = network.answer(photo, 0.5)
    assert answer.branches == (0,)
    assert demo.branches_text(network, answer, 1.25) == (
        "**1.2 ms**\n\n**1 of 3 branches ran:**\n\n- branch 0: ant, bee"
    )


def test_a_file_that_is_no_picture(network, tmp_path):
    (tmp_path / "no.png").write_text("no")
    answer, _ = network.answer(str(tmp_path / "no.png"), 0.2)
    assert answer.problem


def test_what_ran_in_words():
    plain = demo.Network("plain", lambda path, tau: None)
    assert demo.branches_text(plain, Answer("x"), 2.0) == "**2.0 ms**"
    exited = demo.branches_text(demo.Network("n", None, 0.1, [["a"]]), Answer("x", branches=()), 2.0)
    assert exited == "**2.0 ms**\n\n**0 of 1 branches ran.**"


def test_gradio_is_missing(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[demo\]'"):
        demo.main(demo.Options(model="x.keras"))


def test_one_network():
    with pytest.raises(UserError, match="Give one of --run_dir"):
        demo.Options(model="a", run_dir="b")


@pytest.mark.slow
def test_a_running_page_answers_gradios_client(network, photo):
    pytest.importorskip("gradio", reason="pip install -e '.[demo]'")
    import gradio_client

    _, url, _ = (blocks := demo.page(network)).launch(prevent_thread_lock=True, quiet=True)
    try:
        client = gradio_client.Client(url, verbose=False)
        for tau, told in (
            (0.2, "**2 of 3 branches ran:**\n\n- branch 0: ant, bee\n- branch 1: cat, dog"),
            (0.5, "**1 of 3"),
        ):
            classes, text = client.predict(gradio_client.handle_file(photo), tau, api_name="/classify")
            assert told in text and " ms**" in text
            assert classes["label"] in NAMES and len(classes["confidences"]) == demo.TOP
    finally:
        blocks.close()


@pytest.mark.slow
def test_in_a_browser(network, photo):
    pytest.importorskip("gradio", reason="pip install -e '.[demo]'")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright, for this test alone"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium on this machine")
    _, url, _ = (blocks := demo.page(network)).launch(prevent_thread_lock=True, quiet=True)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.goto(url)
            tab.set_input_files("input[type=file]", photo)
            tab.get_by_text("2 of 3 branches ran:").wait_for(timeout=60_000)
            assert tab.get_by_text("branch 1: cat, dog").is_visible()
            assert any(tab.get_by_text(name, exact=True).first.is_visible() for name in NAMES)
            slider = tab.get_by_role("slider")
            slider.fill("0.5")
            slider.dispatch_event("pointerup")
            tab.get_by_text("1 of 3 branches ran:").wait_for(timeout=60_000)
            assert not tab.get_by_text("branch 1: cat, dog").is_visible()
            browser.close()
    finally:
        blocks.close()
