"""Pictures as Mermaid text: the machine, and any saga with its present state coloured in."""

from saga_core.machine import TABLE
from saga_core.model import Saga
from saga_core.states import RESTING, SagaState, StepState

COLOURS: dict[StepState, str] = {
    StepState.PENDING: "fill:#f4f4f4,stroke:#999,color:#333",
    StepState.STARTED: "fill:#cfe4ff,stroke:#1d6fdc,color:#000",
    StepState.COMPLETED: "fill:#d3f2d9,stroke:#1b8a3a,color:#000",
    StepState.FAILED: "fill:#ffd6d6,stroke:#c62828,color:#000",
    StepState.SKIPPED: "fill:#ffffff,stroke:#999,color:#777,stroke-dasharray:4",
    StepState.COMPENSATING: "fill:#ffe8c2,stroke:#c77700,color:#000",
    StepState.COMPENSATED: "fill:#e6ddf5,stroke:#6a3fb5,color:#000",
}


def saga_diagram(saga: Saga) -> str:
    """Draw a saga as a Mermaid flowchart: its graph, with each step in the colour of its state."""
    lines = ["flowchart LR"]
    used: dict[StepState, None] = {}
    for position, (plan, record) in enumerate(zip(saga.plan.steps, saga.records(), strict=True)):
        used[record.state] = None
        opened, closed = ("[[", "]]") if plan.child else ("{{", "}}") if plan.pivot else ("[", "]")
        name = (
            plan.name.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
        )
        lines.append(f'    s{position}{opened}"{name}<br/>{record.state}"{closed}:::{record.state}')
    for position, found in enumerate(saga.plan.graph.dependencies):
        lines += [f"    s{other} --> s{position}" for other in found]
    lines += [f"    classDef {state} {COLOURS[state]}" for state in StepState if state in used]
    return "\n".join(lines) + "\n"


def machine_diagram() -> str:
    """Draw the states of a saga, and the events that lead from one to another, as a Mermaid state diagram."""
    edges: dict[tuple[SagaState, SagaState], list[str]] = {}
    for event, row in TABLE.items():
        for state, following in row.leads.items():
            for other in following:
                if other is not state:
                    edges.setdefault((state, other), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {SagaState.STARTED}"]
    lines += [
        f"    {state} --> {other}: {', '.join(edges[state, other])}"
        for state in SagaState
        for other in SagaState
        if (state, other) in edges
    ]
    lines += [f"    {state} --> [*]" for state in SagaState if state in RESTING]
    return "\n".join(lines) + "\n"


def machine_table() -> str:
    """Write the machine as a Markdown table: what each event does in each state of a saga."""
    lines = [
        f"| event | {' | '.join(SagaState)} |",
        f"| --- | {' | '.join('---' for _ in SagaState)} |",
    ]
    for event, row in TABLE.items():
        cells = [
            " or ".join(f"**{other}**" if other is not state else other for other in row.leads[state])
            if state in row.leads
            else f"ignored: {row.otherwise}"
            for state in SagaState
        ]
        lines.append(f"| `{event.__name__}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
