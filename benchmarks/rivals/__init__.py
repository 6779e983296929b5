"""The same saga, three small steps, on what others use for it: each rival a module, run in a process of its own."""

from pathlib import Path

NODE_PACKAGES = Path(__file__).parents[1] / "node/node_modules"
RESTATE_SERVER = NODE_PACKAGES / "@restatedev/restate-server-linux-x64/bin/restate-server"
