"""What the kernel offers and Python's library does not: mounts, namespaces, files, processes.

Other packages use no ctypes: `libc` is the only way to the C library.
"""
