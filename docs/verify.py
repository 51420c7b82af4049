#!/usr/bin/env python3
"""Checks what `tollgate audit prove` printed, or the note of a seal, with nothing of Tollgate's own.
Usage: verify.py PROOF-OR-NOTE PUBLIC-KEY-OR-FILE      Needs Python 3.8 and the openssl program, 3.0 or later."""
import base64, hashlib, json, os, pathlib, subprocess, sys, tempfile

def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()

def signed(note, vkey):  # C2SP signed-note and tlog-checkpoint: the lines of a text that the key has signed
    name, number, key = vkey.split("+", 2)
    key = base64.b64decode(key, validate=True)
    assert key[:1] == b"\1" and sha(name.encode(), b"\n", key)[:4].hex() == number, "this is no Ed25519 key"
    text, signatures = note[:note.rindex("\n\n") + 1], note[note.rindex("\n\n") + 2:]
    assert text.split("\n")[0] == name, "the note is about another log"
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "text").write_bytes(text.encode())
        pathlib.Path(folder, "key").write_bytes(bytes.fromhex("302a300506032b6570032100") + key[1:])  # RFC 8410
        for line in [line for line in signatures.splitlines() if line.startswith("\u2014 " + name + " ")]:
            signature = base64.b64decode(line.rsplit(" ", 1)[1], validate=True)
            pathlib.Path(folder, "signature").write_bytes(signature[4:])
            command = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in text -sigfile signature"
            good = subprocess.run(command.split(), cwd=folder, capture_output=True).returncode == 0
            if good and signature[:4].hex() == number: return text.split("\n")
    raise AssertionError("a note is not signed with the key that must have signed it")

def root(node, index, last, path):  # RFC 9162, 2.1.3.2
    for beside in map(base64.b64decode, path):
        assert last > 0, "the path is too long"
        left = index & 1 or index == last
        node = sha(b"\1", beside, node) if left else sha(b"\1", node, beside)
        while left and index and not index & 1: index, last = index >> 1, last >> 1
        index, last = index >> 1, last >> 1
    return node if last == 0 else b""

try:
    content, key = open(sys.argv[1], encoding="utf-8", newline="").read(), sys.argv[2]
    key = open(key, encoding="utf-8").readline().strip() if os.path.exists(key) else key
    if content.startswith("{"):
        proof = json.loads(content)
        for note in proof["chain"]:
            key = next(line[5:] for line in signed(note, key) if line.startswith("next "))
        (name, size, top), record = signed(proof["checkpoint"], key)[:3], proof["record"]
        assert (seq := json.loads(record)["seq"]) == proof["index"] + 1 <= int(size), "it is at another place"
        leads = root(sha(b"\0", record.encode()), seq - 1, int(size) - 1, proof["path"]) == base64.b64decode(top)
        assert leads, "the record does not lead to the root that was signed"
        print("proven: record %d of %s, sealed among %s records\n%s" % (seq, name, size, record))
    else:
        print("signed: %s has %s records, their root is %s" % tuple(signed(content, key)[:3]))
except (AssertionError, LookupError, OSError, StopIteration, TypeError, ValueError) as why:
    sys.exit("NOT PROVEN: %r" % (why,))
