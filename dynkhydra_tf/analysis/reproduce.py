"""The earlier name of the command `python -m dynkhydra_tf.paper.reproduce`; it still works."""

from dynkhydra_tf import cli
from dynkhydra_tf.paper.reproduce import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags, positional="flags of train.py after --", at_least=0)
