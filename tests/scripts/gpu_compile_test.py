"""The GPU compiler is not among the requirements, so its script is tested as far as that compiler."""

import re

import jax
import places
import pytest

from scripts.bench import gpu_compile


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    config = str(places.CONFIGS / "llama7b_alpaca.py")
    monkeypatch.setattr("sys.argv", ["gpu_compile", "--card=a100", config, "data.batch_size=8", "remat=dots"])
    with pytest.raises(SystemExit, match=re.escape(f'pip install "jax[cuda12]=={jax.__version__}"')):
        gpu_compile.main()


@pytest.mark.parametrize("name", gpu_compile.CARDS)
def test_a_card_is_described_in_the_units_of_the_compiler(name: str):
    card = gpu_compile.CARDS[name]
    text = gpu_compile.target(card)
    fields = dict(re.findall(r"(\w+): ([\d.]+)", text))
    assert text.count("{") == text.count("}")
    assert int(fields["memory_bandwidth"]) == card.bandwidth * 10**9
    assert 2**22 <= int(fields["l2_cache_size"]) < 2**26
    assert int(fields["shared_memory_per_block_optin"]) <= int(fields["shared_memory_per_core"]) < 2**18
    assert f"major: {card.capability[0]} minor: {card.capability[1]}" in text
