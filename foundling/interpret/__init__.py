# SPDX-License-Identifier: Apache-2.0
"""What goes on inside a model: attention, residual stream and heads, read by hooks from any family."""

from foundling.interpret.circuits import (
    Head,
    composition,
    in_context_score,
    induction_scores,
    ov_reading,
    qk_reading,
    skip_trigrams,
)
from foundling.interpret.lens import attribute, logit_lens
from foundling.interpret.patch import Site, activations, patch_effects, patched, sites_of
from foundling.interpret.trace import Trace, trace

__all__ = [
    "Head", "Site", "Trace", "activations", "attribute", "composition", "in_context_score", "induction_scores",
    "logit_lens", "ov_reading", "patch_effects", "patched", "qk_reading", "sites_of", "skip_trigrams", "trace",
]  # fmt: skip
