"""One module a library that embeds text, each run in a process of its own, in an environment of its own.

An adapter may import NumPy, its own library and its siblings here, and nothing else of this project: the environments
of others do not have it.
"""
