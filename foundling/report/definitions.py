# SPDX-License-Identifier: Apache-2.0
"""Whether a model is a "foundation model" as the US, the EU and the UK have defined it, as far as figures can tell.

Every definition has conditions that no figure decides (breadth of data, generality, risk). The verdict is therefore
about the measurable condition alone, and each row names what it leaves to a reader. This is no legal advice.
"""

from typing import NamedTuple

from foundling.report import units

TENS_OF_BILLIONS = 1e10  # the lowest reading of the order's "tens of billions": who may be meant is told so
BILL_PARAMS = 1e9
GENERAL_PURPOSE_FLOPS = 1e23
SYSTEMIC_RISK_FLOPS = 1e25
# "Vast" has no number in law. Ours: the text behind BERT, which Bommasani et al. 2021 (arXiv:2108.07258) name among the
# first foundation models; its size is from Liu et al. 2019 (RoBERTa, arXiv:1907.11692), section 3.2.
VAST_BYTES = 16e9


class Definition(NamedTuple):
    where: str
    text: str
    """The instrument, its date, its standing today."""
    asks: str
    """The definition, paraphrased."""
    met: bool
    """By the measurable condition."""
    reason: str


def definitions(*, params: int, flops: float, data_bytes: int, generates: bool = True) -> list[Definition]:
    """`flops` is of the whole lineage, as thresholds count a base model's too; `data_bytes` is of distinct text;
    `generates`: whether the model generates text, images or video, which the EU's criterion asks for."""
    spent = f"{units.power(flops)} FLOPs"
    return [
        Definition(
            "US",
            "Executive Order 14110 of 30 October 2023, sec. 3(k), “dual-use foundation model”; "
            "revoked on 20 January 2025 by Executive Order 14148",
            "broad data, generally self-supervised, at least tens of billions of parameters, widely applicable, and "
            "able (or easily made able) to do well at tasks that seriously endanger security, economy or public health",
            params >= TENS_OF_BILLIONS,
            _reason(params, TENS_OF_BILLIONS, f"{units.count(params)} parameters", "10 B, the lowest reading")
            + "; the risk was not assessed",
        ),
        Definition(
            "US",
            "AI Foundation Model Transparency Act of 2023, H.R. 6881, sec. 3(m)(4), introduced on 22 December 2023; "
            "never left committee and lapsed with its Congress in January 2025",
            "as the order above, but generally with at least one billion parameters",
            params >= BILL_PARAMS,
            _reason(params, BILL_PARAMS, f"{units.count(params)} parameters", "1 B") + "; the risk was not assessed",
        ),
        Definition(
            "EU",
            "Regulation (EU) 2024/1689 (AI Act) of 13 June 2024, Art. 3(63), “general-purpose AI model”, as the "
            "Commission's guidelines of 18 July 2025 read it",
            "significant generality, competent at many distinct tasks, fit to be built into other systems; research "
            "and prototypes not yet on the market are excepted. Indicative criterion: over 10²³ FLOPs of training, "
            "and it generates language, or images or video from text",
            generates and flops > GENERAL_PURPOSE_FLOPS,
            _reason(flops, GENERAL_PURPOSE_FLOPS, spent, "10²³", strictly=True)
            + f"; it generates {'text' if generates else 'neither text nor images'}; generality was not assessed",
        ),
        Definition(
            "EU",
            "the same Regulation, Art. 51(2), general-purpose AI model “with systemic risk”",
            "high-impact capabilities, presumed over 10²⁵ FLOPs of training, all its stages together",
            flops > SYSTEMIC_RISK_FLOPS,
            _reason(flops, SYSTEMIC_RISK_FLOPS, spent, "10²⁵", strictly=True),
        ),
        Definition(
            "UK",
            "no statute; Competition and Markets Authority, “AI Foundation Models: Initial Report”, 18 September 2023",
            "AI trained on a vast amount of data that can be adapted to a wide range of tasks",
            data_bytes >= VAST_BYTES,
            _reason(data_bytes, VAST_BYTES, f"{units.size(data_bytes)} of text", "16 GB, the text behind BERT")
            + "; that yardstick is this card's, the CMA gives none; adaptability was not assessed",
        ),
    ]


def _reason(value: float, threshold: float, figure: str, limit: str, *, strictly: bool = False) -> str:
    if value > threshold or (value == threshold and not strictly):
        return f"{figure}, {'over' if strictly else 'at least'} {limit}"
    return f"{figure}, {'not over' if strictly else 'under'} {limit}"
