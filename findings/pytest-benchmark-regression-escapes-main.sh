#!/usr/bin/env bash
# pytest-benchmark 5.3.1 with pytest 9.2.0: --benchmark-compare-fail does not end the session with an
# exit status. PerformanceRegression is raised from the terminal summary, after all tests passed, and
# leaves pytest.main() as an exception. A program that calls pytest.main() and looks at the status
# that it returns, as pytest's documentation has it, gets a traceback instead; the summary of the
# session ("1 passed") is not printed either.
#
# Output seen:
#   first run returned 0
#   second run raised PerformanceRegression: Performance has regressed....
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q pytest==9.2.0 pytest-benchmark==5.3.1

cat > test_sleep.py <<'P'
import os
import time


def test_sleep(benchmark):
    benchmark.pedantic(time.sleep, args=(float(os.environ["SECONDS_ASLEEP"]),), rounds=3)
P
cat > twice.py <<'P'
import os

import pytest

common = ["-q", "-p", "no:cacheprovider", "--benchmark-storage=saved", "test_sleep.py"]
os.environ["SECONDS_ASLEEP"] = "0.001"
print("first run returned", int(pytest.main([*common, "--benchmark-save=first"])))
os.environ["SECONDS_ASLEEP"] = "0.1"
try:
    status = pytest.main(
        [*common, "--benchmark-compare", "--benchmark-compare-fail=median:50%"]
    )
except Exception as error:
    print(f"second run raised {type(error).__name__}: {str(error)[:60]}...")
    assert type(error).__name__ == "PerformanceRegression"
else:
    raise SystemExit(f"changed: it returned {status!r}")
P
python twice.py | tee out.txt | grep -E "^(first|second) run"
if grep -q "1 passed" <(sed '1,/first run/d' out.txt); then echo "changed: the summary is printed"; exit 1; fi
