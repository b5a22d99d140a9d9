"""The earlier name of the command `python -m dynkhydra_tf.paper.report`; it still works."""

import runpy

if __name__ == "__main__":
    runpy.run_module("dynkhydra_tf.paper.report", run_name="__main__", alter_sys=True)
