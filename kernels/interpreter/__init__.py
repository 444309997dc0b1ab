"""A batched interpreter: Triton kernels on a CPU, many programs at a time.

Triton's own interpreter (TRITON_INTERPRET=1) runs the programs of a grid one after the other, each
operation on one small block in NumPy. Programs of one launch do the same work on different data, so
this one runs them together: Triton's front end and semantic layer stay, and every operation is done
once for a group of programs, on PyTorch tensors with a leading axis of programs. bfloat16 and
float16 have PyTorch's semantics; `tl.dot` multiplies exactly and adds up in float32.

Where programs need different values in Python, as a condition or a number of turns of a loop, they
part: those that agree go on together, and each such group starts again from the beginning, with all
stores taken back. The turns must agree, the bounds of a loop need not. A value of more than
`builder.LARGEST_VALUE` elements cuts a group, so that memory stays bounded.

What is not supported is refused by name. An access outside a tensor, and a kernel that does not
end, are errors with the kernel, the line and, where it is known, the program; the tensors of a
launch that fails are what they were before it.

    import os
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from kernels.interpreter import batched, record_work

    with batched(), record_work() as launches:
        kernel[grid](x, y, n, BLOCK=128)
    print(launches[0].flops, launches[0].loaded)

Source: the interpreter of Triton, triton/runtime/interpreter.py.
"""

from kernels.interpreter.launch import batched, enable
from kernels.interpreter.memory import Launch, record_work

__all__ = ["Launch", "batched", "enable", "record_work"]
