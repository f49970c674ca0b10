# SPDX-License-Identifier: Apache-2.0
"""What arithmetic runs, where and how exactly: backends, devices, precision, values derived from weights."""
