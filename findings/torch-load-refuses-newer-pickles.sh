#!/usr/bin/env bash
# A file of nothing but tensors that torch.save wrote with pickle_protocol=4, or 5, cannot be read by
# torch.load, which takes it for one that needs code to be run.
#
# torch 2.13.0: torch.save has the argument pickle_protocol, and 4 is the default of Python's own
# pickle since 3.8. The reader of torch.load(weights_only=True), the default since 2.6, knows the
# instructions of protocols 2 and 3 alone. Its error begins with the advice to pass
# weights_only=False, which runs whatever is in the file, and names the instruction, 149 (FRAME), not
# the protocol. The same tensor saved by default, of protocol 2, is read.
#
# Seen:
#   protocol 2: read
#   protocol 3: read
#   protocol 4: UnpicklingError, Unsupported operand 149
#   protocol 5: UnpicklingError, Unsupported operand 149
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" -W ignore - <<'PYTHON' | tee "$folder/seen"
import io
import re

import torch

for protocol in (2, 3, 4, 5):
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, file, pickle_protocol=protocol)
    file.seek(0)
    try:
        assert torch.load(file)["weight"].tolist() == [1, 1]
        seen = "read"
    except Exception as error:
        seen = ", ".join([type(error).__name__, *re.findall("Unsupported operand .*", str(error))])
    print(f"protocol {protocol}: {seen}")
PYTHON
diff "$folder/seen" - <<'SEEN'
protocol 2: read
protocol 3: read
protocol 4: UnpicklingError, Unsupported operand 149
protocol 5: UnpicklingError, Unsupported operand 149
SEEN
