# SPDX-License-Identifier: Apache-2.0
"""The model's fused operations: one public function each, which picks the backend in plain ifs."""
