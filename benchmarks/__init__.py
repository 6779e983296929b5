"""What this library costs, measured: one module per question, one page (README.md) with the answers.

Run `python -m benchmarks` for everything, or name the questions: `python -m benchmarks core relay`.
"""
