"""Suites that every store and every transport has to pass, a user's own among them."""
