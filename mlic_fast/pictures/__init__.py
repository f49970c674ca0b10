# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out: pixels, what comes with them, finding them in folders, saving them in other formats."""
