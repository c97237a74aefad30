# SPDX-License-Identifier: Apache-2.0
"""The default chat template, in the Jinja dialect that transformers reads: <|im_start|>role … <|im_end|>."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
