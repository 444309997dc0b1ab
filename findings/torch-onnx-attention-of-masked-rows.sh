#!/usr/bin/env bash
# torch.onnx.export of PyTorch 2.13.0 with onnxscript 0.7.2, run by ONNX Runtime 1.32.0: a query that may see
# no key, as padded ones in a batch of texts. scaled_dot_product_attention gives zeros for it. In the
# graph of the opset that export chooses, it gets the mean of all values, those that the mask hides
# included, if the mask is boolean, and NaN if the mask is added. With opset 23, which has an
# operator for attention, it gets zeros, too. Rows that see something are right in every case.
#
# Output seen, of the query that sees nothing:
#   boolean mask: PyTorch zeros, graph of opset 20 the mean of all values
#   added mask: PyTorch zeros, graph of opset 20 NaN
#   boolean mask: PyTorch zeros, graph of opset 23 zeros
#   added mask: PyTorch zeros, graph of opset 23 zeros
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0

cat > show.py <<'P'
import onnxruntime
import torch
import torch.nn.functional as F


class Attention(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 3, 4)
sees = torch.tensor([[True, False, False], [False] * 3, [True] * 3])
added = torch.zeros(3, 3).masked_fill(~sees, -torch.inf)
zeros, mean, nan = torch.zeros(4), v[0, 0].mean(0), torch.full((4,), torch.nan)
names = {"zeros": zeros, "the mean of all values": mean, "NaN": nan}
found = {}
for opset in (None, 23):
    for kind, mask in (("boolean", sees), ("added", added)):
        inputs = q, k, v, mask
        module = Attention().eval()
        program = torch.onnx.export(
            module, inputs, input_names=list("qkvm"), dynamo=True, opset_version=opset, verbose=False
        )
        program.save("model.onnx")
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        fed = {name: x.numpy() for name, x in zip("qkvm", inputs, strict=True)}
        y, right = torch.from_numpy(session.run(None, fed)[0]), module(*inputs)
        torch.testing.assert_close(y[..., [0, 2], :], right[..., [0, 2], :])
        what = [
            [name for name, x in names.items() if torch.allclose(row, x, equal_nan=True)]
            for row in (right[0, 0, 1], y[0, 0, 1])
        ]
        chosen = program.model.opset_imports[""]
        print(f"{kind} mask: PyTorch {what[0][0]}, graph of opset {chosen} {what[1][0]}")
        found[kind, opset] = what
right = [["zeros"], ["zeros"]]
assert found == {
    ("boolean", None): [["zeros"], ["the mean of all values"]],
    ("added", None): [["zeros"], ["NaN"]],
    ("boolean", 23): right,
    ("added", 23): right,
}, found
P
python show.py 2> log || { cat log; exit 1; }
