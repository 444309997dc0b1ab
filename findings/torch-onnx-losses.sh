#!/usr/bin/env bash
# torch.onnx.export of PyTorch 2.13.0 with onnxscript 0.7.2, run by ONNX Runtime 1.32.0:
# 1. F.cross_entropy(..., label_smoothing=s) is exported without its smoothing, whatever s is. Nothing
#    tells: the exporter succeeds, and the graph computes the plain cross-entropy.
# 2. F.logsigmoid, of which losses of preference are made, becomes the logarithm of a sigmoid: where
#    PyTorch gives -100 for -100, the graph gives minus infinity.
#
# Output seen:
#   smoothing 0.0: PyTorch 0.7087, ONNX Runtime 0.7087
#   smoothing 0.1: PyTorch 0.9827, ONNX Runtime 0.7087
#   smoothing 0.5: PyTorch 2.0788, ONNX Runtime 0.7087
#   logsigmoid of [-100, -1]: PyTorch [-100.0, -1.31], ONNX Runtime [-inf, -1.31]
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


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def both(function, *inputs):
    module = Call(function).eval()
    torch.onnx.export(module, inputs, dynamo=True, verbose=False).save("model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return module(*inputs), torch.from_numpy(session.run(None, fed)[0])


torch.manual_seed(0)
targets = torch.randint(11, (64,))
logits = torch.randn(64, 11) + 3 * F.one_hot(targets, 11)
plain = F.cross_entropy(logits, targets)
for smoothing in (0.0, 0.1, 0.5):
    right, found = both(
        lambda x, y, s=smoothing: F.cross_entropy(x, y, label_smoothing=s), logits, targets
    )
    print(f"smoothing {smoothing}: PyTorch {right:.4f}, ONNX Runtime {found:.4f}")
    assert abs(found - plain) < 1e-5, "changed"
    assert smoothing == 0 or abs(right - plain) > 0.01, "changed"
right, found = both(F.logsigmoid, torch.tensor([-100.0, -1.0]))
shown = [[round(v, 2) for v in x.tolist()] for x in (right, found)]
print(f"logsigmoid of [-100, -1]: PyTorch {shown[0]}, ONNX Runtime {shown[1]}")
assert right[0] == -100 and found[0] == -torch.inf and abs(found[1] - right[1]) < 1e-6, "changed"
P
python show.py 2> log || { cat log; exit 1; }
