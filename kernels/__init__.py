"""Fused Triton kernels. One module per operator; import the module: `from kernels.rms_norm import rms_norm`."""
