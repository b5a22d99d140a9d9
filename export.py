"""Exports a trained network: dynkhydra_tf/export.py, to be read from top to bottom.

The command: python export.py --run_dir=runs/digits --export_dir=served/digits
"""

from dynkhydra_tf import cli
from dynkhydra_tf.export import Options, main

if __name__ == "__main__":
    cli.run(main, Options)
