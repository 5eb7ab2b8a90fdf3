"""
Evaluation: every number of the paper has a command.

`evaluate` runs suites: predictions first, into a manifest; then metrics, from the manifest alone; then a report.
"""

from .run import evaluate

__all__ = ["evaluate"]
