import json

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.old_flags import to_flagfile
from dynkhydra_tf.paper import results
from dynkhydra_tf.paper.experiments import Experiment, System, experiments
from dynkhydra_tf.paper_numbers import DYNK_HYDRA, HYDRARES

OURS = Experiment(System("cifar100", DYNK_HYDRA, (3,)), 3)


@pytest.fixture
def finished(tmp_path):
    """Returns a factory of the files that a finished run leaves."""

    def make(name, *flags, experiment=OURS, top1=0.5, tau_rows=()):
        path = tmp_path / name
        (path / "evaluation").mkdir(parents=True)
        (path / "flags.cfg").write_text(to_flagfile(experiment.flags(*flags)))
        summary = {"top1": top1, "active_branches": 2.0, "seconds_per_epoch": 9.0, "seed": 0}
        summary |= {"flops": {"total": 1.5e8}, "parameters": {"total": 2.5e6, "heads": 5e5}}
        (path / "summary.json").write_text(json.dumps(summary))
        if tau_rows:
            (path / "evaluation" / "evaluation.json").write_text(json.dumps({"tau_table": tau_rows}))
        return path

    return make


def test_a_run_belongs_to_what_its_flags_say(finished):
    run = results.read_run(
        finished("a", "--epochs=12", "--seed=5", "--feature_extractor=pixels", "--run_dir=x")
    )
    assert results.runs_of(OURS, [run]) == [run]
    assert not results.runs_of(OURS._replace(depth=2), [run])
    assert not results.runs_of(Experiment(System("cifar100_hydrares", HYDRARES, (3,)), 3), [run])
    other = results.read_run(finished("b", "--num_branches=10"))
    assert not results.runs_of(OURS, [other])


def test_rows_have_mean_deviation_and_difference_by_hand(finished):
    runs = [
        results.read_run(finished(name, f"--seed={name}", top1=top1))
        for name, top1 in (("0", 0.7), ("1", 0.74))
    ]
    row, missing = results.result_rows([OURS, OURS._replace(depth=4)], runs)
    assert row["seeds"] == 2
    assert row["top1"] == pytest.approx(72)
    assert row["top1_std"] == pytest.approx(8**0.5)  # of 70 and 74, one degree of freedom
    assert row["top1_difference"] == pytest.approx(72 - 73.41)  # Table 4, d=3
    assert row["active_branches_difference"] == pytest.approx(2 - 2.34)
    assert (row["mflops"], row["mflops_difference"]) == (150, 11)  # the paper: 139
    assert (row["parameters"], row["parameters_paper"]) == (3.0, None)
    assert (missing["seeds"], missing["top1"], missing["top1_paper"]) == (0, None, 74.01)
    table = results.result_table([row, missing])
    assert table[0][:5] == ["data set", "system", "d", "seeds", "top-1, %"]
    assert table[1][4:7] == ["72.00 ± 2.83", "73.41", "-1.41"]
    assert table[2][4:7] == ["-", "74.01", "-"]


def test_tau_rows_stand_beside_table_6(finished):
    (food,) = (each for each in experiments("6") if each.depth == 9)
    at = {"tau": 0.06, "active_branches": 2.5, "top1": 0.48, "top5": 0.7, "flops": 4e8}
    run = results.read_run(finished("food", experiment=food, tau_rows=[at, {**at, "tau": 0.07}]))
    first, second = results.tau_rows([food], [run])
    assert (first["top1"], first["top1_paper"]) == (48, 46.98)
    assert first["active_branches_difference"] == pytest.approx(2.5 - 2.61)
    assert (second["tau"], second["top1_paper"]) == (0.07, None)
    assert results.tau_table([first, second])[1][3:5] == ["0.06", "2.50"]


def test_schedules_are_not_mixed(finished):
    for name, flags in {
        "long": [],
        "short0": ["--epochs=12", "--schedule=cosine"],
        "short1": ["--epochs=12", "--schedule=cosine", "--seed=1", "--lr_drops=3:1e-1"],
    }.items():
        finished(name, *flags)
    groups = results.by_recipe(results.find_runs(finished("last", "--epochs=3").parent))
    assert [[run.path.name for run in runs] for _, runs in groups] == [
        ["short0", "short1"],
        ["last"],
        ["long"],
    ]
    head, details = results.recipe_text(groups[0][0])
    assert head == "12 epochs, cosine"
    assert "lr drops" not in details
    assert "lr drops ['80:1e-1', '140:1e-2', '170:1e-3', '180:5e-4']" in results.recipe_text(groups[2][0])[1]


def test_unfinished_runs_are_none_and_damaged_ones_an_error(finished, tmp_path):
    path = finished("run")
    (path / "summary.json").unlink()
    assert results.read_run(path) is None
    assert results.find_runs(tmp_path) == []
    (path / "summary.json").write_text('{"top1"')
    with pytest.raises(UserError, match=r"summary\.json cannot be read .* again"):
        results.find_runs(tmp_path)
    with pytest.raises(UserError, match="nowhere is no directory"):
        results.find_runs(tmp_path / "nowhere")
