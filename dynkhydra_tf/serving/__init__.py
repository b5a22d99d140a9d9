"""Serving: the inference graph, the SavedModel and what lies beside it, edge formats, the client."""
