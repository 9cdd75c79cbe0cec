"""The README of an exported model: origin, training, and the results of its verification."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.convert.proof import in_words
from llama_jax.convert.source import Source
from llama_jax.runtime.files import json_text


def write(source: Source, folder: Path, report: Mapping[str, Any]) -> None:
    """Write README.md with the metadata that the Hugging Face hub reads at its top."""
    (folder / "README.md").write_text(text(source, report))


def text(source: Source, report: Mapping[str, Any]) -> str:
    """The text of a model card. The licence is the publisher's to choose, unless the origin names
    one."""
    c, logits = source.config, report["logits"]
    origin = source.origin if isinstance(source.origin, dict) else {}
    training = origin.get("training")
    facts = {k: v for k, v in origin.items() if k != "training" and v is not None}
    licence = str(origin.get("license", "other"))
    lines = [
        "---",
        f"license: {licence}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [llama, jax, llama-jax]",
        "---",
        "",
        f"# A Llama of {report['parameters']:,} parameters",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")',
        "```",
        "",
        "## Licence",
        "",
        f"{licence}. The licence of the weights is that of whoever trained them: weights derived "
        "from Llama 2 stay under its community licence.",
        "",
        "## Architecture",
        "",
        "| layers | width | heads | key/value heads | MLP | vocabulary | context | type |",
        "|---|---|---|---|---|---|---|---|",
        f"| {c.num_layers} | {c.d_model} | {c.num_heads} of {c.head_dim} | {c.num_kv_heads} "
        f"| {c.d_ff} | {c.vocab_size} | {c.max_seq_len} | {c.param_dtype} |",
        "",
        "## Origin",
        "",
        f"Converted by llama_jax {report['versions']['llama-jax']} from the format "
        f"`{report['source']['format']}`.",
        *_block("What the source says of itself:", facts),
        *_block("Training configuration:", training),
        "",
        "## Proof",
        "",
        f"Every tensor was read back from these files; its digest is in `report.json`. "
        f"{_identity(report)} Logits on {len(logits['tokens'])} fixed tokens, against the "
        f"source's: {in_words(logits)}.",
        "",
        *(f"- {note}" for note in report["notes"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _identity(report: Mapping[str, Any]) -> str:
    changed = report["not_identical"]
    if changed:
        return f"Not bit for bit as they were sent: {', '.join(changed)}."
    return "All are bit for bit as they were sent."


def _block(title: str, values: Any) -> list[str]:
    if not values:
        return []
    return ["", title, "", "```json", json_text(values, indent=2), "```"]
