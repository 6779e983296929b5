"""Where sagas are kept."""
