"""Token ids that a base has no embedding of: refused before they reach it, since a gather would take others."""

from collections.abc import Callable, Sequence

from aligner_jax.errors import InputError


def check_ids(
    ids: Sequence[int],
    num_embeddings: int,
    *,
    what: str = "the text",
    token: Callable[[int], str] | None = None,
    vocab_size: int | None = None,
) -> None:
    """Refuses ids that are negative or beyond the base's embedding.

    Args:
      num_embeddings: rows of the embedding.
      what: the ids' source, with which the sentence begins.
      token: returns the text of an id, for the sentence.
      vocab_size: tokens of the tokenizer, for the sentence.

    Raises:
      InputError: names the id, its text and both sizes.
    """
    # Two passes in C: this runs over all ids of all texts.
    if not ids or (max(ids) < num_embeddings and min(ids) >= 0):
        return
    strange = next(i for i in ids if not 0 <= i < num_embeddings)
    text = "" if token is None or strange < 0 else f" ({token(strange)!r})"
    sizes = "" if vocab_size is None else f" and its tokenizer has {vocab_size:,}"
    raise InputError(
        f"{what} has the token {strange}{text}, but the base has embeddings of {num_embeddings:,} tokens only{sizes}: "
        "give the base the tokenizer it was trained with, or leave the token out of texts and chat template"
    )
