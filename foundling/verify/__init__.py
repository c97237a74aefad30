# SPDX-License-Identifier: Apache-2.0
"""Is an answer right? A sandbox for model-written code, and verifiers for code, maths, SQL, formats and instructions."""  # noqa: E501
