"""The least recomputation that fits: searched in few compilations, with any growth of the memory."""

import pytest

from aligner_jax.tasks.remat import Choice, Memory, Need, described, least_remat

LAYERS = 30
GIB = 1 << 30


def peaks(full: float, layer: float, everything: float, bend: float = 1.0) -> dict[str, int]:
    """Returns the peak of every candidate; `bend` makes the growth with N other than linear."""
    some = {f"dots:{n}": int(full + layer * LAYERS * (n / LAYERS) ** bend) for n in range(1, LAYERS)}
    return {"full": int(full), **some, "dots": int(full + layer * LAYERS), "none": int(everything)}


def search(of: dict[str, int], limit: int, *, need: Need | None = None, told: int | None = None):
    """Returns the choice, and the candidates that were compiled, in order."""
    made = []

    def memory_of(remat: str) -> Memory:
        made.append(remat)
        return Memory(of[remat], told or limit, of[remat] <= (told or limit))

    return least_remat(memory_of, need or Need(LAYERS, lambda remat: 0.0), limit), made


@pytest.mark.parametrize(
    ("limit", "chosen", "compiled"),
    [(100, "none", ["none"]), (70, "dots", ["none", "dots"]), (5, "full", ["none", "dots", "full"])],
)
def test_the_first_that_fits_is_taken(limit: int, chosen: str, compiled: list[str]):
    choice, made = search(peaks(10, 2, 100), limit)
    assert (choice.remat, made) == (chosen, compiled)
    assert set(choice.compiled) == set(made)


@pytest.mark.parametrize("bend", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("most", [1, 2, 7, 15, 28, 29])
def test_as_many_layers_keep_their_products_as_fit(most: int, bend: float):
    of = peaks(10 * GIB, GIB / 3, 99 * GIB, bend)
    choice, made = search(of, of[f"dots:{most}"] + GIB // 20)
    kept = int(choice.remat.removeprefix("dots:"))
    assert kept == most if bend == 1 else most - 2 <= kept <= most
    assert len(made) <= 3 + 3


def test_where_not_one_layer_fits_everything_runs_again():
    choice, _ = search(peaks(10, 2, 100), 11)
    assert choice.remat == "full"


def test_nothing_is_compiled_whose_arguments_and_saved_activations_are_too_large_already():
    of = peaks(10 * GIB, GIB / 3, 99 * GIB)
    bounds = {name: peak - 2 * GIB for name, peak in of.items()}
    choice, made = search(of, 15 * GIB, need=Need(LAYERS, lambda remat: bounds[remat]))
    assert choice.remat == "dots:15"
    assert made == ["full", "dots:15"]


def test_what_the_compiler_says_a_program_may_take_counts():
    of = peaks(10 * GIB, GIB / 3, 99 * GIB)
    choice, _ = search(of, 16 * GIB, told=15 * GIB)
    assert choice.remat == "dots:15"


def test_a_choice_is_told_in_one_line():
    found = {
        "dots": Memory(int(31.5 * GIB), 16 * GIB, False), "full": Memory(3 * GIB, 16 * GIB, True),
        "dots:20": Memory(int(14.2 * GIB), 16 * GIB, True),
    }  # fmt: skip
    assert described(Choice("dots:20", found), 32) == (
        "dots in 20 of 32 layers (14.2 of 16.0 GiB; dots in all would need 31.5)"
    )
    assert described(Choice("full", found), 32) == "full (3.0 of 16.0 GiB; dots would need 31.5)"
    assert described(Choice("dots:20", {}), 32) == "dots in 20 of 32 layers"
    fits = {"none": Memory(int(0.4 * GIB), 9 * GIB, True)}
    assert described(Choice("none", fits), 32) == "none (0.4 of 9.0 GiB)"
