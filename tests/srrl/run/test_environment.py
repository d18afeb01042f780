"""What a run's folder keeps of the code that made it."""

import subprocess

from srrl.run import environment


def test_a_repository_around_an_installed_package_is_not_its_code(tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    author = ["-c", "user.name=x", "-c", "user.email=x"]
    commit = [*author, "commit", "--quiet", "--allow-empty", "--message", "x"]
    for arguments in (["init", "--quiet"], commit):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    monkeypatch.setattr(environment, "REPOSITORY", package)
    assert environment.code() == {"commit": None, "changed": None}
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    assert len(environment.code()["commit"]) == 40
