# SPDX-License-Identifier: Apache-2.0
"""Entropy coding: from symbols and their scales to bytes and back."""
