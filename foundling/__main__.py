# SPDX-License-Identifier: Apache-2.0
"""python -m foundling"""

from foundling.cli import main

if __name__ == "__main__":
    main()
