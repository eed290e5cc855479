"""Several runs side by side: figures, pictures, and one report."""

from retrieval_engine.evaluate.compare.comparison import Comparison, Row, compare
from retrieval_engine.evaluate.compare.run_page import write_report
from retrieval_engine.evaluate.compare.runs import Run, open_runs

__all__ = ["Comparison", "Row", "Run", "compare", "open_runs", "write_report"]
