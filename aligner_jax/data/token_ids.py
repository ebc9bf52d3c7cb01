"""Refuses token ids beyond the base's embedding, since a gather would silently read other rows."""

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
    """Refuses token ids that are negative or beyond the base's embedding.

    Args:
      ids: token ids.
      num_embeddings: rows of the embedding.
      what: source of the ids, with which the message begins.
      token: returns the text of an id, for the message.
      vocab_size: vocabulary size of the tokenizer, for the message.

    Raises:
      InputError: an id is out of range; the message names the id, its text and both sizes.
    """
    # Two passes in C, because this runs over all ids of all texts.
    if not ids or (max(ids) < num_embeddings and min(ids) >= 0):
        return
    strange = next(i for i in ids if not 0 <= i < num_embeddings)
    text = "" if token is None or strange < 0 else f" ({token(strange)!r})"
    sizes = "" if vocab_size is None else f" and its tokenizer has {vocab_size:,}"
    raise InputError(
        f"{what} has the token {strange}{text}, but the base has embeddings of {num_embeddings:,} tokens only{sizes}: "
        "give the base the tokenizer it was trained with, or leave the token out of texts and chat template"
    )
