"""The rivals of the question "how fast is a hop", each one a way to drive the same course."""
