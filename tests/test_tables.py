from dynkhydra_tf.tables import table


def test_table_aligns():
    rows = [["name", "use", "classes"], ["a", "9%", "cat, dog"], ["long", "10%", "cow"]]
    assert table(rows, text_columns=(0, 2)).splitlines() == [
        "name  use  classes",
        "----  ---  --------",
        "a      9%  cat, dog",
        "long  10%  cow",
    ]
