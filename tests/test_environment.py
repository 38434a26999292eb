"""Commands of `.venv` work without activation, for a service account, and without a home."""

import os
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SAY = 'exec python -c "import os, sys; print(sys.prefix, os.path.expanduser(chr(126)))" > said'
HOMELESS = "import os, pwd; os.environ.pop('HOME', None); pwd.getpwuid = lambda uid: {}[uid]; "


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with our file in it, and the packages of this one."""
    folder = tmp_path_factory.mktemp("project") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "environment.pth").write_text((ROOT / "environment.pth").read_text())
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture
def project(python: Path, tmp_path: Path) -> Path:
    """A project whose only stage says which Python runs it."""
    for command in (["git", "init", "--quiet"], [python, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(f"stages: {{say: {{cmd: '{SAY}', outs: [said]}}}}")
    return tmp_path


@pytest.mark.parametrize("shell", ["/bin/sh", "/usr/sbin/nologin", "/bin/false"])
def test_dvc_runs_stages_without_activation_whatever_the_login_shell(
    python: Path, project: Path, shell: str
) -> None:
    environment = {"SHELL": shell, "PATH": "/usr/bin:/bin", "HOME": str(project)}
    subprocess.run([python, "-m", "dvc", "repro", "-q"], cwd=project, env=environment, check=True)
    assert (project / "said").read_text().split() == [str(python.parents[1]), str(project)]


def ask(python: Path, code: str, **variables: str) -> str:
    result = subprocess.run(
        [python, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_other_shells_and_homes_are_left_alone(python: Path, tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('SHELL'), os.environ.get('HOME'))"
    assert ask(python, code, SHELL="/bin/zsh", HOME=str(tmp_path)) == f"/bin/zsh {tmp_path}"
    assert ask(python, code).startswith("None ")


def test_the_environment_is_first_on_the_path_once(python: Path) -> None:
    code = "import os; print(os.environ['PATH'])"
    ours = str(python.parent)
    assert ask(python, code, PATH="/usr/bin:/bin") == f"{ours}:/usr/bin:/bin"
    assert ask(python, code, PATH=f"{ours}:/bin") == f"{ours}:/bin"
    assert ask(python, code).startswith(f"{ours}:")


def test_without_a_home_the_folder_for_temporary_files_takes_its_place(
    python: Path, tmp_path: Path
) -> None:
    code = "import os; print(os.path.expanduser('~'))"
    assert ask(python, code, HOME="/nonexistent", TMPDIR=str(tmp_path)) == str(tmp_path)
    # Of a user whom the system does not know, as in a container, Python finds no home at all.
    exec_again = f"exec(open({str(ROOT / 'environment.pth')!r}).read()); {code}"
    assert ask(python, HOMELESS + exec_again, TMPDIR=str(tmp_path)) == str(tmp_path)


# The child inherits the output, which therefore ends when both have.
KILLED = """
import os, subprocess, sys
wait = "print('ready', flush=True); import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", wait], env={**os.environ, "%s": "1"})
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("is_server", [True, False])
def test_a_temporary_server_ends_with_the_run_that_is_killed(python: Path, is_server: bool) -> None:
    name = "PREFECT__SERVER_EPHEMERAL" if is_server else "ANYTHING"
    with subprocess.Popen([python, "-c", KILLED % name], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        said = {run.stdout.readline().strip() for _ in range(2)}
        (pid,) = said - {"ready"}
        run.kill()
        try:
            run.communicate(timeout=10 if is_server else 0.3)
            has_ended = True
        except subprocess.TimeoutExpired:
            has_ended = False
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    assert has_ended == is_server
