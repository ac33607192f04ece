"""Chat templates in the forms that published models have, and what they make of a conversation."""

CONVERSATION = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Hi <b>you</b>!"},
  {"role": "assistant", "content": "Hello."},
  {"role": "user", "content": "Two\nlines"},
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}

# ChatML: Qwen and many others.
CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
  "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Llama 2: the system message is part of the first question; roles must alternate.
LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
  {%- set loop_messages = messages[1:] -%}{%- set system_message = messages[0]['content'] -%}
{%- else -%}
  {%- set loop_messages = messages -%}{%- set system_message = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- if loop.index0 == 0 and system_message != false -%}
    {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] -%}
  {%- else -%}
    {%- set content = message['content'] -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' '  + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""

# The date, a namespace, loop controls, JSON, the mark around answers, and tags on lines of their own.
LATER = """{{- bos_token }}
    {% set ns = namespace(seen=0) %}
{%- if not tools is defined or tools is none %}{% set tools = none %}{% endif %}
{{- "Today: " + strftime_now("%%%%") + "\\n" }}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {%- set ns.seen = ns.seen + 1 %}
  {%- generation %}{{ ns.seen }} {{ message | tojson }};{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "A:" }}{% endif %}"""

WRITTEN = {
  CHATML: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>you</b>!<|im_end|>\n"
  "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nTwo\nlines<|im_end|>\n<|im_start|>assistant\n",
  LLAMA2: "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi <b>you</b>! [/INST] Hello. </s><s>[INST] Two\nlines [/INST]",
  LATER: '<s>\nToday: %%\n1 {"role": "user", "content": "Hi <b>you</b>!"};'
  '2 {"role": "assistant", "content": "Hello."};3 {"role": "user", "content": "Two\\nlines"};A:',
}
