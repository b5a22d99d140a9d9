"""The earlier name of the command `python -m dynkhydra_tf.paper.report`; it still works."""

from dynkhydra_tf import cli
from dynkhydra_tf.paper.report import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags, positional="directories that hold runs")
