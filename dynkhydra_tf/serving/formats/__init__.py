"""The formats that a trained network is exported to, one module a format."""
