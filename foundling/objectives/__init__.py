# SPDX-License-Identifier: Apache-2.0
"""What is to be learnt. An objective is `normalizers(batch)` and `__call__(model, batch) -> Loss`."""
