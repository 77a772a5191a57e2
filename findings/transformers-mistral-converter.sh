#!/usr/bin/env bash
# transformers 4.57.3 and 5.24.0: MistralConverter, which turns Mistral's tekken vocabulary into a tokenizer
# One would expect: hosts that keep the vocabulary inside the checkpoint (ComfyUI 0.30.0 does for Flux.2) hand it over as
# a dictionary, as they always have, whatever version of transformers is installed.
# What happens: the class has kept its name and its module, but takes a path of a tekken.json and nothing else; the
# dictionary goes into **kwargs, where a misspelt or outdated argument is no error, and the path is missing.
# Why it matters: the text encoder of Flux.2 cannot be loaded, and the message (vocab_file) names nothing that the user has.
# What to do: an older transformers, or write the vocabulary to a temporary file and give its path.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4.57.3 5.24.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -qq "transformers==$version" numpy==2.4.6
    "$work/$version/bin/python" - "$version" "$work/tekken.json" <<'EOF'
import base64
import json
import sys

from transformers.integrations.mistral import MistralConverter

version, path = sys.argv[1:]
special = ["<unk>", "<s>", "</s>"]
ordinary = [bytes([i]) for i in range(256)] + [b"re", b"red"]

vocabulary = {token: rank for rank, token in enumerate(special)}
vocabulary |= {token: rank + len(special) for rank, token in enumerate(ordinary)}
try:
    tokenizer = MistralConverter(vocab=vocabulary, additional_special_tokens=special).converted()
    as_dictionary = tokenizer.encode("red", add_special_tokens=False).ids
except TypeError as error:
    as_dictionary = str(error)
print(f"transformers {version}, from a dictionary: {as_dictionary}")

if version == "4.57.3":
    assert as_dictionary == [vocabulary[b"red"]], as_dictionary
else:
    assert "vocab_file" in as_dictionary, as_dictionary
    entries = [{"rank": r, "token_bytes": base64.b64encode(t).decode()} for r, t in enumerate(ordinary)]
    specials = [{"rank": r, "token_str": t, "is_control": True} for r, t in enumerate(special)]
    config = {"pattern": r"\w+|\W+", "default_vocab_size": len(vocabulary), "default_num_special_tokens": len(special)}
    config |= {"num_vocab_tokens": len(ordinary), "version": "v7"}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"config": config, "vocab": entries, "special_tokens": specials}, file)
    ids = MistralConverter(vocab_file=path).converted().encode("red", add_special_tokens=False).ids
    print(f"transformers {version}, from a file: {ids}")
    assert ids == [vocabulary[b"red"]], ids
EOF
done
