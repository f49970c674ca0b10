# SPDX-License-Identifier: Apache-2.0
"""The GPU half of the engine: recorded programs, pinned memory, and what follows a convolution there."""
