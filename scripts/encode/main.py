"""Text to token ids as JSON lines; scripts/encode.sh runs it and describes its options."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers  # noqa: E402

BATCH = 256  # documents that are encoded at a time


class InputError(Exception):
    """A line that cannot be encoded, or a tokenizer that cannot be used."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="encode.sh", allow_abbrev=False)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--input", default="-")
    parser.add_argument("--field", default="text")
    parser.add_argument("--format", choices=["text", "jsonl", "chat"])
    return parser.parse_args(arguments)


def load_tokenizer(folder: Path) -> Any:
    folder = folder.parent if folder.name == "tokenizer.json" else folder
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; name the folder of a tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of many classes
        text = " ".join(str(error).split())
        raise InputError(f"{folder}: transformers cannot read the tokenizer: {text}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: the tokenizer is not one of the library tokenizers")
    return tokenizer


def records(file: IO[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not blank."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}: line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{name}: line {number}: is not a JSON object")
        yield number, record


def encode_texts(tokenizer: Any, texts: list[str]) -> Iterator[dict[str, Any]]:
    end = tokenizer.eos_token_id
    for encoding in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        yield {"ids": [*encoding, end]}


def texts_of(file: IO[bytes], name: str, form: str, field: str) -> Iterator[str]:
    if form == "text":
        try:
            yield file.read().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: not valid UTF-8 at byte {error.start + 1}") from error
        return
    for number, record in records(file, name):
        if not isinstance(record.get(field), str):
            raise InputError(f'{name}: line {number}: the field "{field}" is absent or not a text; '
                             "choose another with --field")
        yield record[field]


def render(tokenizer: Any, messages: list[dict[str, Any]], prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def answers(tokenizer: Any, messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
    """Where the assistant's turns stand in `text`, the whole chat."""
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], prompt=True)
        after = render(tokenizer, messages[:i + 1])
        if not after.startswith(before) or not text.startswith(after):
            raise InputError(f"the chat template writes the first {i + 1} messages differently when "
                             "others follow, so the assistant's turns cannot be found; divide the "
                             "chat into one line for each answer")
        spans.append((len(before), len(after)))
    if not spans:
        raise InputError("has no message of the assistant")
    return spans


def encode_chat(tokenizer: Any, record: dict[str, Any]) -> dict[str, Any]:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages or not all(
            isinstance(message, dict) and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str) for message in messages):
        raise InputError('the field "messages" is not a list of {"role": …, "content": …}')
    try:
        text = render(tokenizer, messages)
        spans = answers(tokenizer, messages, text)
    except InputError:
        raise
    except Exception as error:  # of the template
        raise InputError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = encoding["offset_mapping"]
    trained = []
    for begin, end in spans:
        inside = [i for i, (first, last) in enumerate(places) if begin <= first < last <= end]
        if inside:
            trained.append([inside[0], inside[-1] + 1])
    return {"ids": encoding["input_ids"], "trained": trained}


def guess_format(path: str) -> str:
    """Of a file; by its name and its first line."""
    if not path.lower().endswith((".jsonl", ".ndjson", ".json")):
        return "text"
    with open(path, "rb") as file:
        first = next(records(file, path), None)
    return "chat" if first and "messages" in first[1] else "jsonl"


def encode(tokenizer: Any, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    name = "standard input" if arguments.input == "-" else arguments.input
    form = arguments.format or ("text" if arguments.input == "-" else guess_format(name))
    with open(0 if arguments.input == "-" else arguments.input, "rb") as file:
        if form == "chat":
            if not tokenizer.chat_template:
                raise InputError(f"{arguments.tokenizer}: the tokenizer has no chat template")
            for number, record in records(file, name):
                try:
                    yield encode_chat(tokenizer, record)
                except InputError as error:
                    raise InputError(f"{name}: line {number}: {error}") from error
            return
        if tokenizer.eos_token_id is None:
            raise InputError(f"{arguments.tokenizer}: the tokenizer has no eos_token, which ends a "
                             "document; add it to tokenizer_config.json")
        batch: list[str] = []
        for text in texts_of(file, name, form, arguments.field):
            batch.append(text)
            if len(batch) == BATCH:
                yield from encode_texts(tokenizer, batch)
                batch = []
        if batch:
            yield from encode_texts(tokenizer, batch)


def main(words: list[str]) -> int:
    arguments = parse_arguments(words)
    try:
        for line in encode(load_tokenizer(arguments.tokenizer), arguments):
            print(json.dumps(line, separators=(",", ":")))
        sys.stdout.flush()
    except (InputError, OSError) as error:
        print(f"encode.sh: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
