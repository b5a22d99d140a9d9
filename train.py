"""Trains a network: dynkhydra_tf/train.py, to be read from top to bottom.

The command: python train.py --flagfile=configs/digits.cfg
"""

from dynkhydra_tf import cli
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.train import main

if __name__ == "__main__":
    cli.run(main, Settings)
