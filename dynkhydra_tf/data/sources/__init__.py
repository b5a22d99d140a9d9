"""Where the images come from, one module a source."""
