"""scripts/lib/tpu_worker.sh: the code and the Python that workers get."""

import subprocess

import pytest
from fake_pod import LINE, SLICE, Pod, needs_tools, sentence

pytestmark = needs_tools


def test_work_that_the_workers_would_not_get_is_refused(ready: Pod):
    first = ready.git("rev-parse", "HEAD")
    (ready.root / "new.py").touch()
    dirty = ready.run(*SLICE, *LINE)
    assert (dirty.returncode, len(dirty.stderr.splitlines())) == (1, 1)
    assert "has uncommitted changes, which the workers would not get" in dirty.stderr

    ready.commit("second")
    ahead = ready.run(*SLICE, *LINE)
    assert (ahead.returncode, len(ahead.stderr.splitlines())) == (1, 1)
    assert "is at a commit that is not pushed" in ahead.stderr
    assert ready.calls() == []

    (ready.root / "newer.py").touch()
    for rev in (first[:8], "main"):
        assert ready.run(*SLICE, f"--rev={rev}", *LINE).returncode == 0
        worker = ["git", "-C", str(ready.fake / "worker-1" / "aligner_jax"), "rev-parse", "HEAD"]
        assert subprocess.run(worker, capture_output=True, text=True, check=True).stdout.strip() == first

    unknown = ready.run(*SLICE, "--rev=my branch", *LINE)
    assert unknown.returncode == 1
    assert f"error: w-1 finds no revision my branch in {ready.origin}\n" in unknown.stderr
    assert sentence(unknown) == "error: the command could not be started on all workers (their reasons are above)"


def test_workers_follow_what_was_pushed(ready: Pod):
    assert ready.run(*SLICE, *LINE).returncode == 0
    (ready.root / "new.py").touch()
    ready.commit("second")
    ready.git("push", "--quiet")
    assert ready.run(*SLICE, *LINE).returncode == 0
    assert (ready.fake / "worker-0" / "aligner_jax" / "new.py").exists()


@pytest.mark.parametrize(
    ("url", "cloned"),
    [
        ("git@host.org:me/repo.git", "https://host.org/me/repo.git"),
        ("ssh://git@host.org/me/repo.git", "https://host.org/me/repo.git"),
        ("https://host.org/me/repo.git", "https://host.org/me/repo.git"),
    ],
)
def test_workers_clone_without_keys(pod: Pod, url, cloned):
    pod.git("remote", "set-url", "origin", url)
    assert f"git clone --quiet --no-checkout {cloned} ~/aligner_jax\n" in pod.run(*SLICE, "--dry-run", *LINE).stdout


def test_an_origin_that_workers_cannot_use_is_one_sentence(pod: Pod):
    pod.git("remote", "set-url", "origin", "https://me:secret@host.org/repo.git")
    password = pod.run(*SLICE, "--dry-run", *LINE)
    pod.git("remote", "remove", "origin")
    missing = pod.run(*SLICE, "--dry-run", *LINE)
    assert [result.returncode for result in (password, missing)] == [1, 1]
    assert "holds a name or a password" in password.stderr
    assert "secret" not in password.stdout + password.stderr
    assert missing.stderr.endswith("has no git remote named origin that the workers could clone: give --repo=URL\n")


def test_a_worker_with_an_old_python_gets_a_new_one(ready: Pod):
    (ready.bin / "python3.12").unlink()
    ready.program("python3", 'echo "$*" >>~/asked; [ "$4" != find ] || echo /new/python')
    with (ready.root / "scripts" / "lib" / "environment.sh").open("a") as file:
        file.write('echo "$PYTHON" >~/made-with\n')
    ready.commit("second")
    ready.git("push", "--quiet")
    result = ready.run(*SLICE, *LINE)
    assert result.returncode == 0, result.stderr
    for worker in (0, 1):
        home = ready.fake / f"worker-{worker}"
        asked = (home / "asked").read_text().splitlines()
        assert [line.split()[1] for line in asked] == ["pip", "uv", "uv"]
        assert (home / "made-with").read_text() == "/new/python\n"
