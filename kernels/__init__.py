# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, installed as mlic_fast.kernels: one fused operation a file."""
