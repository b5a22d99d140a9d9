"""The paper's own numbers, by the table or section that has them, to set beside ours.

Table 1 (ResNet and ResSep on CIFAR-100, Food-101 and CUB-200: parameters, FLOPs, accuracy) is a picture in
the text that this project has, and lost: what is here of it is what Table 4 and sentences of the text
repeat. None is a number that is lost or that the paper does not give. Accuracy is top-1 in percent.
"""

from typing import NamedTuple

PLAIN, HYDRARES, DYNK, HYDRARES_SP, DYNK_HYDRA = "plain", "HydraRes", "DynK", "HydraRes-SP", "DynK-Hydra"


class Row(NamedTuple):
    """One method at one depth.

    Attributes:
        top1: percent, or None.
        mflops: millions of FLOPs for one image, or None.
        parameters: millions, or None; of DynK-Hydra with the heads, which are for training only.
        active_branches: lambda, or None where it is K, lost, or there are no branches.
    """

    top1: float | None = None
    mflops: float | None = None
    parameters: float | None = None
    active_branches: float | None = None


def _rows(depths, **columns):
    """Rows by depth, from a column for each field."""
    return {d: Row(**{name: column[at] for name, column in columns.items()}) for at, d in enumerate(depths)}


_TO_9 = (1, 2, 3, 4, 5, 6, 7, 9)

# RESULTS[data set, backbone][method][depth] -> Row. On DenseNet the paper calls HydraRes Hydra-Dense.
RESULTS = {
    # Accuracy: Table 4. lambda: section "Numerical results". FLOPs: section "Discussion", which says
    # "around 74 %" and not which depth; Table 4 and our own counts say d=6 and d=3.
    ("cifar100", "resnet"): {
        HYDRARES: _rows(
            _TO_9,
            top1=(63.31, 72.68, 73.21, 73.66, 73.86, 73.94, 74.57, 74.35),
            mflops=(None, None, None, None, None, 378, None, None),
        ),
        DYNK: _rows(_TO_9, top1=(64.94, 72.77, 73.25, 74.23, 74.03, 74.76, 74.73, 75.10)),
        HYDRARES_SP: _rows(_TO_9, top1=(64.60, 72.16, 73.26, 73.37, 74.42, 74.38, 75.33, 74.66)),
        DYNK_HYDRA: _rows(
            _TO_9,
            top1=(64.27, 72.84, 73.41, 74.01, 74.30, 74.41, 74.76, 74.84),
            mflops=(None, None, 139, None, None, None, None, None),
            active_branches=(3.46, 2.68, 2.34, 2.24, 2.13, 1.98, 1.90, 1.75),
        ),
    },
    # Table 2. lambda: section "Numerical results".
    ("cifar100", "densenet"): {
        PLAIN: _rows(
            (1, 2, 3, 4, 5, 6),
            top1=(39.50, 51.01, 59.00, 62.16, 65.02, 67.39),
            mflops=(4, 10, 22, 36, 55, 77),
            parameters=(0.02, 0.05, 0.10, 0.17, 0.25, 0.36),
        ),
        HYDRARES: _rows(
            (1, 2, 3, 4),
            top1=(48.54, 57.29, 63.75, 67.18),
            mflops=(8, 24, 51, 87),
            parameters=(0.20, 0.70, 1.54, 2.61),
        ),
        DYNK_HYDRA: _rows(
            (1, 2, 3, 4),
            top1=(49.01, 59.03, 64.71, 67.20),
            mflops=(7, 20, 39, 63),
            parameters=(0.25, 0.80, 1.66, 2.81),
            active_branches=(3.14, 2.69, 2.26, 1.96),
        ),
    },
    # Section "Numerical results"; the accuracies of d=1 and d=9 are in TAU, at 0.08.
    ("food101", "resnet"): {
        DYNK_HYDRA: _rows(_TO_9, active_branches=(3.05, 2.62, 2.49, 2.43, 2.39, 2.38, 2.42, 2.30)),
    },
    # Section "Numerical results".
    ("cub200", "ressep"): {
        DYNK_HYDRA: _rows(_TO_9, active_branches=(2.01, 1.95, 1.99, 1.96, 1.95, 1.78, 1.76, 1.78)),
    },
    # Table 3. lambda: section "Numerical results".
    ("imagenet32", "resnet"): {
        HYDRARES: _rows(
            (1, 2, 3, 4, 5), top1=(14.32, 17.37, 17.09, 18.64, 17.50), mflops=(61, 135, 209, 283, 358)
        ),
        DYNK_HYDRA: _rows(
            (1, 2, 3, 4, 5),
            top1=(15.14, 18.12, 18.90, 19.53, 19.89),
            mflops=(57, 121, 185, 250, 331),
            active_branches=(4.50, 4.16, 4.11, 4.07, 4.02),
        ),
    },
}

# Section "Discussion": the largest plain ResNet on CIFAR-100. Its depth is lost; by our count d=27 has 761 M.
LARGEST_RESNET = Row(top1=73.56, mflops=767)

# Table 5: CIFAR-100, d=2. PARTITIONS[method][strategy] -> top-1.
PARTITIONS = {
    HYDRARES: {"random": 70.34, "semantic": 70.19, "cluster_balance": 72.68},
    DYNK_HYDRA: {"random": 71.22, "semantic": 70.79, "cluster_balance": 72.84},
}

# Table 6: DynK-Hydra on Food-101. TAU[depth][tau] -> Row.
TAU = {
    1: _rows(
        (0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
        active_branches=(3.93, 3.86, 3.71, 3.47, 3.05, 2.51),
        top1=(38.28, 38.25, 38.20, 38.08, 37.75, 37.12),
    ),
    9: _rows(
        (0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
        active_branches=(3.48, 3.27, 2.92, 2.61, 2.30, 2.02),
        top1=(47.33, 47.20, 47.12, 46.98, 46.83, 46.56),
    ),
}
