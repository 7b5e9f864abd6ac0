"""A small local Functions host: stands in for ``func start`` where Core Tools are not installed.

It loads ``function_app.py`` as the platform's Python worker does and serves what it finds: HTTP routes,
blob, queue and timer triggers. A development tool, not deployed; ``func start`` works on the same tree.
"""
