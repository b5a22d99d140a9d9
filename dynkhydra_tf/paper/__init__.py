"""The paper: its numbers, its experiments as runs of train.py, its tables and figures beside ours."""
