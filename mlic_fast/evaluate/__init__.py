# SPDX-License-Identifier: Apache-2.0
"""How good and how small: quality measures and rates."""
