"""A command in a forked process ends, prints and reads as one in a new process."""

import pytest

from tests.gpt2.stand_ins import run_forked, run_python

CODE = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("PLANTED"), __name__, sys.stdin.read() == "")
print("an error", file=sys.stderr)
{}
"""
PRODUCT = "import torch; torch.ones(300, 300) @ torch.ones(300, 300)"


@pytest.mark.parametrize("end", [PRODUCT, "sys.exit('why')", "1 / 0", "os.abort()"])
def test_a_forked_command_is_as_one_of_its_own(tmp_path, end):
    words = ["-c", CODE.format(end), "one", "two"]
    new, forked = (run(*words, cwd=tmp_path, PLANTED="x") for run in (run_python, run_forked))
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_the_server_has_no_threads_and_forks_as_many_processes_as_are_asked_for():
    code = "import os; print(len(os.listdir('/proc/self/task')), os.environ['RANK'])"
    done = run_forked("-c", code, ranks=[{"RANK": "0"}, {"RANK": "1"}])
    assert done.returncode == [0, 0]
    assert sorted(done.stdout.splitlines()) == ["1 0", "1 1"]
