"""The tests, in folders named like those of `src`, and the servers they run on."""
