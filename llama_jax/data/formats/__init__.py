"""Readers of common conversation formats: TRL, hh-rlhf, OpenAssistant, ShareGPT and others.

`open_records(path, kind)` reads a file; `table.FORMATS` says which formats there are.
"""

from llama_jax.data.formats.reading import Reading, Report, open_records
from llama_jax.data.formats.table import FORMATS, KINDS

__all__ = ["FORMATS", "KINDS", "Reading", "Report", "open_records"]
