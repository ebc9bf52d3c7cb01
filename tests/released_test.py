"""The authors' released Aligners, and what is no such file."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.peft.released import load_released

GOLDEN = Path(__file__).parent / "goldens" / "released.pth"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "official_aligners"


def _rewritten(path: Path, change) -> Path:
    """The golden file with `change(name, bytes) -> bytes or None` applied to each member."""
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


def test_reads_what_torch_wrote():
    adapter, expected = load_adapter(GOLDEN), np.load(GOLDEN.with_suffix(".npz"))
    np.testing.assert_array_equal(adapter.trainable["tokens_pd"], expected["tokens"])
    np.testing.assert_array_equal(adapter.trainable["gates_ln"], expected["gates"])
    assert adapter.method == "aligner"
    assert adapter.options.as_dict() == {"num_tokens": 2, "start_layer": 2, "gates": "head", "tokens": "model"}
    assert adapter.num_params == 2 * 8 + 3 * 4


class _Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    evil = pickle.dumps({"global_value_embedding.weight": _Evil()})
    path = _rewritten(tmp_path / "evil.pth", lambda name, data: evil if name.endswith("data.pkl") else data)
    with pytest.raises(InputError, match=r"evil\.pth asks for builtins\.print, which is no tensor"):
        load_released(path)
    assert capsys.readouterr().out == ""


def test_copies_must_be_equal(tmp_path: Path):
    with zipfile.ZipFile(GOLDEN) as archive:
        tokens = next(archive.read(n) for n in archive.namelist() if n.endswith("data/0"))
    seen = []

    def change(name: str, data: bytes) -> bytes:
        if data == tokens:
            seen.append(name)
            return data if len(seen) == 1 else b"\x01" + data[1:]
        return data

    with pytest.raises(InputError, match=r"transformer\.h\.2\.attn\.adapter_wte\.weight"):
        load_released(_rewritten(tmp_path / "unequal.pth", change))


@pytest.mark.parametrize("kept", [0, 20, 100, 1000, -30])
def test_cut_short(tmp_path: Path, kept: int):
    path = tmp_path / "cut.pth"
    path.write_bytes(GOLDEN.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.pth"):
        load_released(path)


def test_storage_cut_short(tmp_path: Path):
    path = _rewritten(tmp_path / "small.pth", lambda name, data: data[:2] if "/data/" in name else data)
    with pytest.raises(InputError, match="needs more bytes than its storage has"):
        load_released(path)


def test_not_tensors(tmp_path: Path):
    for value, sentence in (({"a": 1}, "'a' is not a tensor"), ([1], "holds a list")):
        content = pickle.dumps(value)
        path = _rewritten(tmp_path / "other.pth", lambda name, data, c=content: c if "data.pkl" in name else data)
        with pytest.raises(InputError, match=sentence):
            load_released(path)


def test_another_zip(tmp_path: Path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("hello.txt", "hello")
    (tmp_path / "zip.pth").write_bytes(archive.getvalue())
    with pytest.raises(InputError, match=r"no data\.pkl"):
        load_released(tmp_path / "zip.pth")


@pytest.mark.skipif(not SHARED.exists(), reason="the released files are not beside this checkout")
def test_the_released_files():
    first = load_adapter(SHARED / "alpaca_llama2_7b_aligner1.pth")
    spread = np.std(np.asarray(first.trainable["gates_ln"]), axis=1)
    assert first.num_params == 5056
    np.testing.assert_allclose([spread[0], spread[-1], spread.max()], [0.0206, 0.0464, 0.0740], atol=5e-5)
    assert load_adapter(SHARED / "alpaca_llama2_13b_aligner10.pth").num_params == 52_720
    assert load_adapter(SHARED / "metamath_llama2_7b_aligner10.pth").num_params == 41_920
    assert load_adapter(SHARED / "pku_dpo_llama2_7b_aligner1.pth").num_params == 5056
    with pytest.raises(InputError, match=r"NOT_WEIGHTS\.pth is not a torch file: it is text"):
        load_adapter(SHARED / "alpaca_llama2_7b_aligner10_NOT_WEIGHTS.pth")
