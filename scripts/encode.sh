#!/usr/bin/env bash
# Encodes text with a tokenizer of Hugging Face's library tokenizers and writes token ids for
# `stablemask data prepare --ids`: one JSON object a document, {"ids": [...]}, and for chats also
# "trained", the ranges of ids of the assistant's turns.
#
#   scripts/encode.sh --tokenizer FOLDER [--input FILE] [--field NAME] [--format text|jsonl|chat]
#     --tokenizer FOLDER   folder with tokenizer.json and tokenizer_config.json
#     --input FILE         text or JSONL; without it standard input
#     --format FORMAT      text: all of the input is one document; jsonl: a document a line, in the
#                          field NAME (default: text); chat: a list of {"role", "content"} a line, in
#                          the field "messages", written by the tokenizer's chat template. Default:
#                          text, for names that end with .jsonl by the fields of the first line
#   scripts/encode.sh --install     only install the packages
#
# Example: scripts/encode.sh --tokenizer Qwen3-0.6B --input text.jsonl |
#            stablemask data prepare --ids - --tokenizer Qwen3-0.6B/tokenizer.json --output text.shard
#
# Documents of text end with the tokenizer's eos_token; chats end as the template ends them. The
# packages come from Python's package registry into a virtual environment in
# ${STABLEMASK_CACHE:-~/.cache/stablemask}, once.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

python_script encode "name a tokenizer with --tokenizer FOLDER" "$@"
