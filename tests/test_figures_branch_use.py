from dynkhydra_tf.figures.branch_use import save_branch_use
from tests.test_figures import results


def test_axes_fit_the_bars_and_numbers_stand_beside_them(drawn, tmp_path):
    found = results() | {"branch_use": [0.05, 0.08, 0.02], "active_branches": 0.15}
    save_branch_use(found, [["a"], ["b"], ["c"]], tmp_path / "use.png")
    use, accuracy = drawn[0].axes
    assert 0.08 < use.get_xlim()[1] < 0.12 and 0.5 < accuracy.get_xlim()[1] < 0.7
    assert [text.get_text() for text in accuracy.texts] == ["50.0%", "50.0%", "no images"]
    longest = max(bar.get_window_extent().x1 for bar in use.patches)
    assert all(text.get_window_extent().x0 > longest for text in use.texts)


def test_long_names_take_three_lines_at_most(drawn, tmp_path):
    clusters = [["word " * 100], ["x" * 500], ["many", "short", "ones"]]
    save_branch_use(results(), clusters, tmp_path / "use.png")
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert [name.count("\n") + 1 for name in names] == [3, 3, 1]
    assert drawn[0].axes[0].get_window_extent().width > 0.2 * drawn[0].bbox.width  # room for the bars is left
