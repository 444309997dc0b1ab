"""Fused Triton kernels, one module each: `from kernels.rms_norm import rms_norm`."""
