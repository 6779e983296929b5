"""Order sagas on the whole library: client and engine in one process, on one store, one loop, one broker."""
