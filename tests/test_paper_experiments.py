import pytest

from dynkhydra_tf.costs import NUM_CLASSES
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.paper.experiments import TABLES, Experiment, Series, experiments
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, HYDRARES_SP, PLAIN, Row

# What makes each method, DESIGN.md section 3: (a threshold, a loss of each branch).
MADE_OF = {
    HYDRARES: (False, False),
    DYNK: (True, False),
    HYDRARES_SP: (False, True),
    DYNK_HYDRA: (True, True),
}


@pytest.mark.parametrize("table", TABLES)
def test_each_experiment_is_the_method_that_it_says(table):
    names = set()
    for experiment in experiments(table):
        settings, method = experiment.settings(), experiment.series.method
        network = settings.network
        assert network.depth == experiment.depth
        assert settings.data.dataset in NUM_CLASSES
        assert (network.system == "plain") == (method == PLAIN)
        if method != PLAIN:
            assert (network.tau > 0, network.branch_weight > 0) == MADE_OF[method]
        names.add(experiment.name)
    assert len(names) == len(experiments(table))


def test_tables_share_runs():
    of = {key: {each.name: each for each in experiments(key)} for key in ("4", "5")}
    shared = of["4"].keys() & of["5"].keys()
    assert shared == {"cifar100-d2", "cifar100_hydrares-d2"}
    for name in shared:
        assert of["4"][name].arguments == of["5"][name].arguments


def test_names_and_flags_by_hand():
    random = next(each for each in experiments("5", [1]) if each.series.variant == "random")
    assert random.name == "cifar100_hydrares-random-d1"
    assert random.arguments == [
        "--flagfile=configs/cifar100_hydrares.cfg",
        "--partition=random",
        "--depth=1",
    ]
    settings = random.settings("--epochs=3")
    assert (settings.partition.partition, settings.optimisation.epochs) == ("random", 3)
    assert (settings.network.tau, settings.network.num_branches) == (0.0, 20)


def _paper(table, method, depth, variant=""):
    experiment = next(
        each
        for each in experiments(table, [depth])
        if (each.series.method, each.series.variant) == (method, variant)
    )
    settings = experiment.settings()
    return experiment.paper_row(settings.data.dataset, settings.network.backbone)


def test_papers_numbers_by_hand():
    assert _paper("4", DYNK_HYDRA, 3) == Row(73.41, 139, None, 2.34)
    assert _paper("4", DYNK_HYDRA, 8) == Row()
    assert _paper("5", HYDRARES, 2, "semantic") == Row(70.19)
    assert _paper("5", HYDRARES, 1, "semantic") == Row()
    assert _paper("5", DYNK_HYDRA, 2, "cluster_balance").top1 == 72.84
    assert _paper("2", PLAIN, 6) == Row(67.39, 77, 0.36)
    assert _paper("1", PLAIN, 27) == Row(73.56, 767)
    assert _paper("6", DYNK_HYDRA, 9) == Row(46.83, active_branches=2.30)  # Table 6 at tau 0.08
    assert _paper("plus", DYNK_HYDRA, 1, "gate_weighted") == Row()


def test_wrong_flags_are_one_error():
    experiment = Experiment(Series("cifar100", DYNK_HYDRA, (1,)), 1)
    with pytest.raises(UserError, match=r"cifar100-d1: .*epochs"):
        experiment.settings("--epochs=many")
    with pytest.raises(UserError, match=r"begin with --\. Received: epochs=2"):
        experiment.settings("epochs=2")


def test_the_configs_are_found_outside_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = Experiment(Series("cifar100", DYNK_HYDRA, (1,)), 3).settings()
    assert (settings.data.dataset, settings.network.depth) == ("cifar100", 3)
