"""Several runs side by side: figures, plots, and one report."""

from retrieval_engine.evaluate.compare.comparison import Comparison, Row, compare
from retrieval_engine.evaluate.compare.pages import write_report
from retrieval_engine.evaluate.compare.runs import ComparedRun, open_runs

__all__ = ["ComparedRun", "Comparison", "Row", "compare", "open_runs", "write_report"]
