# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the benchmarks that take minutes. Calibration takes half an hour and is run apart."""

from benchmarks import prediction

if __name__ == "__main__":
    prediction.main()
