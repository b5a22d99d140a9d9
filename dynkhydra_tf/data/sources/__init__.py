"""Where the images come from, one module a kind of source; `base.py` says what each has."""
