# SPDX-License-Identifier: Apache-2.0
"""`python -m mlic_fast.train`: the same as `mlic-fast train`."""

import sys

from mlic_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
