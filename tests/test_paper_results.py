import json

import pytest

from dynkhydra_tf.flags import to_flagfile
from dynkhydra_tf.paper import results
from dynkhydra_tf.paper.experiments import Experiment, Series, experiments
from dynkhydra_tf.paper_numbers import DYNK_HYDRA, HYDRARES
from dynkhydra_tf.runs import FinishedRun

OURS = Experiment(Series("cifar100", DYNK_HYDRA, (3,)), 3)


@pytest.fixture
def finished(tmp_path):
    """Returns a factory of the files that a finished run leaves."""

    def make(name, *flags, experiment=OURS, top1=0.5, tau_rows=(), **more):
        path = tmp_path / name
        (path / "evaluation").mkdir(parents=True)
        (path / "flags.cfg").write_text(to_flagfile(experiment.settings(*flags)))
        summary = {"top1": top1, "active_branches": 2.0, "seconds_per_epoch": 9.0, "seed": 0}
        summary |= {"flops": {"total": 1.5e8}, "parameters": {"total": 2.5e6, "heads": 5e5}}
        (path / "summary.json").write_text(json.dumps(summary | more))
        if tau_rows:
            (path / "evaluation" / "evaluation.json").write_text(json.dumps({"tau_table": tau_rows}))
        return path

    return make


def test_a_run_belongs_to_what_its_flags_say(finished):
    run = FinishedRun.open(
        finished("a", "--epochs=12", "--seed=5", "--feature_extractor=pixels", "--run_dir=x")
    )
    assert results.runs_of(OURS, [run]) == [run]
    assert not results.runs_of(OURS._replace(depth=2), [run])
    assert not results.runs_of(Experiment(Series("cifar100_hydrares", HYDRARES, (3,)), 3), [run])
    other = FinishedRun.open(finished("b", "--num_branches=10"))
    assert not results.runs_of(OURS, [other])


def test_rows_have_mean_deviation_and_difference_by_hand(finished):
    runs = [
        FinishedRun.open(finished(name, f"--seed={name}", top1=top1))
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
    assert table[0][:7] == ["data set", "system", "d", "epochs", "paper", "seeds", "top-1, %"]
    assert table[1][6:9] == ["72.00 ± 2.83", "73.41", "-1.41"]
    assert table[2][6:9] == ["-", "74.01", "-"]


def test_tau_rows_stand_beside_table_6(finished):
    (food,) = (each for each in experiments("6") if each.depth == 9)
    at = {"tau": 0.06, "active_branches": 2.5, "top1": 0.48, "top5": 0.7, "flops": 4e8}
    run = FinishedRun.open(finished("food", experiment=food, tau_rows=[at, {**at, "tau": 0.07}]))
    first, second = results.tau_rows([food], [run])
    assert (first["top1"], first["top1_paper"]) == (48, 46.98)
    assert first["active_branches_difference"] == pytest.approx(2.5 - 2.61)
    assert (second["tau"], second["top1_paper"]) == (0.07, None)
    header, row, _ = results.tau_table([first, second])
    assert header[:7] == ["data set", "system", "d", "tau", "epochs", "paper", "lambda"]
    assert row[3:7] == ["0.06", "100", "100", "2.50"]


def test_every_row_says_how_long_its_runs_were(finished):
    machine = {"processor": "Xeon", "cores": 2, "accelerators": ["H200"]}
    run = FinishedRun.open(finished("short", "--epochs=2", "--schedule=cosine", machine=machine))
    row, missing = results.result_rows([OURS, OURS._replace(depth=4)], [run])
    assert (row["epochs"], row["epochs_paper"], row["schedule"]) == (2, 190, "cosine")
    assert (missing["epochs"], missing["epochs_paper"], missing["machine"]) == (None, 190, None)
    _, first, second = results.result_table([row, missing])
    assert (first[3:5], first[-1], second[3:5]) == (["2", "190"], "cosine", ["-", "190"])
    text = results.training_text([row, missing])
    assert text == "Ours: 2 epochs, cosine, on Xeon, 2 cores, H200. The paper's: 190 epochs."
    other = row | {"epochs": 12, "machine": None, "epochs_paper": 100}
    ours, papers = results.training_text([row, other]).split(". ")
    assert ours == "Ours: 2 epochs, cosine or 12 epochs, cosine, on Xeon, 2 cores, H200"
    assert papers == "The paper's: 190 or 100 epochs."
    both = row | {"machine": f"{row['machine']}; M1, 8 cores"}
    assert "on Xeon, 2 cores, H200; M1, 8 cores. The" in results.training_text([row, both, row])
    assert results.training_text([missing]) == ""


def test_schedules_are_not_mixed(finished):
    for name, flags in {
        "long": [],
        "short0": ["--epochs=12", "--schedule=cosine"],
        "short1": ["--epochs=12", "--schedule=cosine", "--seed=1", "--lr_drops=3:1e-1"],
    }.items():
        finished(name, *flags)
    groups = results.by_recipe(FinishedRun.find_all(finished("last", "--epochs=3").parent))
    assert [[run.name for run in runs] for runs in groups] == [["short0", "short1"], ["last"], ["long"]]
    short, _, long = (results.recipe_text(results.recipe_of(runs[0].settings)) for runs in groups)
    assert "lr drops" not in short and "warmup epochs 1.0" in short
    assert "lr drops 80:0.1,140:0.01,170:0.001,180:0.0005" in long and "warmup" not in long


def test_what_changes_nothing_is_no_part_of_a_recipe(finished):
    finished("often")
    finished("seldom", "--evaluate_every=5", "--class_weight_limit=3")
    finished("ends", "--early_stopping=2", "--class_weights=balanced")
    last = finished("ends_seldom", "--early_stopping=2", "--class_weights=balanced", "--evaluate_every=5")
    groups = results.by_recipe(FinishedRun.find_all(last.parent))
    assert [[run.name for run in runs] for runs in groups] == [["often", "seldom"], ["ends"], ["ends_seldom"]]
