"""PKU-SafeRLHF's records: a prompt and two responses, one of them safer."""

from aligner_jax.data.sources.example import Preference
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import check_text, flag_field, kind, text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str) -> Preference:
    """Parses a prompt and two responses; the safer one is preferred. Other fields are ignored.

    A record has the published fields (response_0, response_1, is_response_0_safe, is_response_1_safe,
    safer_response_id), or a list `response` with the safer one first. A published pair is kept if at least one response
    is safe, as in the Aligner paper.

    Raises:
      InputError: a field is missing or of another type.
      Dropped: neither response is safe.
    """
    prompt = text_field(record, "prompt", where)
    if "response" in record:
        safer, worse = _pair(record["response"], where)
    else:
        responses = [text_field(record, f"response_{i}", where) for i in (0, 1)]
        safe = [flag_field(record, f"is_response_{i}_safe", where) for i in (0, 1)]
        first = _safer(record, where)
        if not any(safe):
            raise Dropped("no safe answer")
        safer, worse = responses[first], responses[1 - first]
    return Preference(prompt=({"role": "user", "content": prompt},), chosen=safer, rejected=worse)


def _pair(responses: object, where: str) -> list[str]:
    if not isinstance(responses, list) or len(responses) != 2:
        raise InputError(f"{where}: the field 'response' is not a list of two texts, the safer one first")
    return [
        check_text(text, f"response {number} of the field 'response'", where)
        for number, text in enumerate(responses, 1)
    ]


def _safer(record: dict, where: str) -> int:
    name = "safer_response_id"
    if name not in record:
        text_field(record, name, where)
    value = record[name]
    if isinstance(value, bool) or value not in (0, 1):
        found = value if isinstance(value, int) and not isinstance(value, bool) else kind(value)
        raise InputError(f"{where}: the field {name!r} holds {found}, not 0 or 1")
    return int(value)


_PUBLISHED = ("response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "safer_response_id")
_RATINGS = tuple(
    f"response_{i}_{name}" for i in (0, 1) for name in ("source", "harm_category", "severity_level", "sha256")
)


def _fits(record: dict) -> bool:
    published = "response_0" in record and "response_1" in record
    return "prompt" in record and (published or isinstance(record.get("response"), list))


PKU_SAFERLHF = Source(
    name="pku_saferlhf",
    parse=parse,
    fits=_fits,
    record=Preference,
    uses=("prompt", "response", *_PUBLISHED),
    ignores=("better_response_id", "prompt_source", *_RATINGS),
    about="Pairs of responses to questions that provoke, compared for harmlessness; prompts repeat.",
    homepage="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
    licence="CC BY-NC 4.0",
    root="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF/resolve/main/data/",
    files={
        split: tuple(f"{model}/{split}.jsonl" for model in ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B"))
        for split in ("train", "test")
    },
)
