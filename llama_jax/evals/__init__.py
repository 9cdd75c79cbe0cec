"""Evaluation: judged answers, intervals, reports."""
