"""Reads PKU-SafeRLHF's published records, where the package does not; importing it is enough."""

from aligner_jax.data import sources
from aligner_jax.data.sources import Preference


def parse(record: dict, where: str) -> Preference:
    safer = record["safer_response_id"]
    prompt = ({"role": "user", "content": record["prompt"]},)
    return Preference(prompt, record[f"response_{safer}"], record[f"response_{1 - safer}"])


sources.SOURCES.setdefault("pku_saferlhf", parse)  # pyright: ignore[reportArgumentType]
