# SPDX-License-Identifier: Apache-2.0
"""Training: the published recipe, its data, its loop, and checkpoints from which it goes on exactly."""
