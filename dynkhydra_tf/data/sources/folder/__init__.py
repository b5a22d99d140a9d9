"""Folders of images: what is in them, whether the files are images, and reading them."""
