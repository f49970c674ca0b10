# SPDX-License-Identifier: Apache-2.0
"""`python -m mlic_fast` is `mlic-fast`."""

import sys

from mlic_fast.cli.main import main

sys.exit(main())
