"""The paper's experiments as runs of train.py, its tables and figures beside ours."""
