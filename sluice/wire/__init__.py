"""What travels: messages and their schemas, the tensor codec, names of topics, the manifest, errors, metrics.

Nothing here opens a socket or knows a room; every other part of Sluice may import it.
"""
