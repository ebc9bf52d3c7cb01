"""A made-up result of a cell in the format of aligner_jax/studies/reproduce_small.py."""


def made_up(gains: list[float], parameters: int = 828) -> dict:
    """Returns a result on documents of ten targets and 20 nats, each better by so many nats."""
    base = [[20.0, 10] for _ in gains]
    after = [[20.0 - gain, 10] for gain in gains]
    loss = sum(nats for nats, _ in after) / (10 * len(gains))
    return {
        "parameters": parameters, "base_documents": base, "documents": after, "base_loss": 2.0, "loss": loss,
        "tokens_per_second": 400.0, "seconds": 50.0,
    }  # fmt: skip
