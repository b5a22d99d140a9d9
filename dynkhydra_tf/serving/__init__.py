"""Serving: the inference graph, the SavedModel and what lies beside it, export formats, the client."""
