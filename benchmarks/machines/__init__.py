"""Well-known state machines, led through the same three steps: started, three steps, completed."""
