"""All commands under one name.

    dynkhydra train --flagfile=configs/digits.cfg
    dynkhydra predict --run_dir=runs/digits photo.jpg

`dynkhydra VERB --help` tells a command's flags; `python -m dynkhydra_tf VERB` is the same.
"""

import runpy
import sys

VERBS = {
    "train": "train",
    "evaluate": "evaluation",
    "export": "export",
    "predict": "predict",
    "frontier": "frontier",
    "launch": "launch",
    "demo": "demo",
    "client": "serving.client",
    "verify": "serving.verify",
    "monitor": "serving.monitor",
    "costs": "costs",
    "benchmark": "benchmark",
    "latency": "benchmark.latency",
    "embedding": "analysis.embedding",
    "interpolation": "analysis.interpolation",
    "keep": "runs.keep",
    "reproduce": "paper.reproduce",
    "report": "paper.report",
}


def main() -> None:
    """Runs the command that the first argument names.

    Raises:
        SystemExit: the command's; 2 where the first argument is none of `VERBS`.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("-h", "--help"):
        print(f"{__doc__}\nVERB is one of {', '.join(VERBS)}.")
        sys.exit(0)
    if verb not in VERBS:
        print(f"error: The first word must be one of {', '.join(VERBS)}. Received: {verb!r}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"dynkhydra_tf.{VERBS[verb]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
