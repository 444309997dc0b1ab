#!/usr/bin/env bash
# pytest 9.2.0 with PyTorch 2.13.0: monkeypatch takes an option of PyTorch's compiler away for the rest
# of the process, while it seems to put it back. The modules `torch._inductor.config`, `torch._dynamo.config`
# and their kind keep options in a dictionary of their own and serve them by __getattr__ and __setattr__.
# From 9.2 on, monkeypatch saves what stands in the target's __dict__ where no data descriptor is in the
# way: nothing, here, so that it restores the option by delattr, which these modules take for "does not
# exist any more". Later compilations in the process end in an AttributeError far from the test that
# did it. pytest 9.1.1 puts the value back, and so does `config.patch`, PyTorch's own way.
#
# Output seen:
#   pytest 9.1.1: inductor's max_autotune, after monkeypatch: False as before
#   pytest 9.2.0: inductor's max_autotune, after monkeypatch: AttributeError: torch._inductor.config.max_autotune does not exist
#   pytest 9.2.0: dynamo's recompile_limit, after monkeypatch: AttributeError: torch._dynamo.config.recompile_limit does not exist
#   pytest 9.2.0: inductor's epilogue_fusion, after config.patch: True as before
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.4.6

cat > options.py <<'P'
import sys

import pytest
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor


def tell(library, name, value):
    holder = {"inductor": inductor, "dynamo": dynamo}[library]
    before = getattr(holder, name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(holder, name, value)
        assert getattr(holder, name) == value
    try:
        found = f"{getattr(holder, name)} as before"
        assert getattr(holder, name) == before
    except AttributeError as error:
        found = f"AttributeError: {error}"
    print(f"pytest {pytest.__version__}: {library}'s {name}, after monkeypatch: {found}")
    return "as before" in found


kept = tell("inductor", "max_autotune", True)
if pytest.__version__ == "9.1.1":
    assert kept, "changed: the older release loses it too"
else:
    assert not kept and not tell("dynamo", "recompile_limit", 3), "changed: it is put back"
    before = inductor.epilogue_fusion
    with inductor.patch({"epilogue_fusion": not before}):
        assert inductor.epilogue_fusion != before
    assert inductor.epilogue_fusion == before
    print(f"pytest {pytest.__version__}: inductor's epilogue_fusion, after config.patch: {before} as before")
P
for version in 9.1.1 9.2.0; do
    pip install -q "pytest==$version"
    python options.py
done
