from dynkhydra_tf import paper_numbers as paper


def test_rows_by_hand():
    # Table 2, third row of DynK-Hydra, with the third lambda of the text.
    row = paper.RESULTS["cifar100", "densenet"][paper.DYNK_HYDRA][3]
    assert row == (64.71, 39, 1.66, 2.26)
    # Table 4, d9; nothing else of that row is left.
    assert paper.RESULTS["cifar100", "resnet"][paper.DYNK][9] == (75.10, None, None, None)


def test_what_the_paper_says_twice_agrees():
    # Table 6 at tau 0.08 and the text's lambdas of Food-101.
    food = paper.RESULTS["food101", "resnet"][paper.DYNK_HYDRA]
    for depth in (1, 9):
        assert paper.TAU[depth][0.08].active_branches == food[depth].active_branches
    # Table 5's cluster_balance and Table 4's d2.
    cifar = paper.RESULTS["cifar100", "resnet"]
    for system in (paper.HYDRARES, paper.DYNK_HYDRA):
        assert paper.PARTITIONS[system]["cluster_balance"] == cifar[system][2].top1
