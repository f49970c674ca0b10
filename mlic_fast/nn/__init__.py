# SPDX-License-Identifier: Apache-2.0
"""The network's parts, under the official parameter names, one part a file."""
