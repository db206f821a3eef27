"""deploy/chromium.seccomp.json in the kernel: Chromium's sandbox works under it, and other namespaces are refused."""

import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cplane.browser import find_executable

PROFILE = Path(__file__).parents[2] / "deploy" / "chromium.seccomp.json"
NOBODY = 65534
LIBRARY = ctypes.util.find_library("seccomp")

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libseccomp is not installed")

CONFINED = """
import ctypes, json, os, sys

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


library, path, user, *command = sys.argv[1:]
seccomp = ctypes.CDLL(library)
seccomp.seccomp_init.restype = ctypes.c_void_p
seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
seccomp.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
]
profile = json.load(open(path))
context = seccomp.seccomp_init(ctypes.c_uint32(ERRNO | profile["defaultErrnoRet"]))
for rule in profile["syscalls"]:
    action = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule["errnoRet"]
    given = [Comparison(a["index"], OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0)) for a in rule.get("args", [])]
    array = (Comparison * max(1, len(given)))(*given)
    for name in rule["names"]:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are of another architecture, or newer than the library
            assert not seccomp.seccomp_rule_add_array(context, action, number, len(given), ctypes.addressof(array)), name
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
assert not ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges
assert not seccomp.seccomp_load(context)
os.execv(command[0], command)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path


def confined(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program under the profile, as a user other than root."""
    return subprocess.run(
        [sys.executable, "-c", CONFINED, str(LIBRARY), str(PROFILE), str(NOBODY), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
    )


def unprivileged_namespaces() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    user = None if os.geteuid() else NOBODY
    command = [unshare, "--user", "true"]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=30, user=user, group=user)
    return ended.returncode == 0


@pytest.mark.skipif(not unprivileged_namespaces(), reason="this machine has no user namespaces for users")
def test_chromium_runs_in_its_sandbox(home: Path) -> None:
    browser = str(find_executable().path)
    if os.geteuid() == 0 and browser.startswith("/root/"):
        pytest.skip("the browser is in the home of root, where others may not run it")
    url = "data:text/html,<h1>confined</h1>"
    ended = confined(home, browser, "--headless", f"--user-data-dir={home}/profile", "--dump-dom", url)
    assert "<h1>confined</h1>" in ended.stdout, ended.stderr


@pytest.mark.skipif(not unprivileged_namespaces(), reason="this machine has no user namespaces for users")
def test_namespaces_that_the_sandbox_does_not_use_are_refused(home: Path) -> None:
    unshare = str(shutil.which("unshare"))
    assert confined(home, unshare, "--user", "/bin/true").returncode == 0
    for other in ("--mount", "--uts", "--ipc", "--cgroup"):
        ended = confined(home, unshare, "--user", other, "/bin/true")
        assert "Operation not permitted" in ended.stderr, other
