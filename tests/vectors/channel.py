"""The data channel once more, from its description alone: what the Rust implementation is checked by.

    channel.py write FILE   makes test vectors from fixed secrets
    channel.py check FILE   computes everything in them anew
    channel.py play         is one side of exchanges: a JSON object a line in, one a line out

Needs `cryptography` 50, which has ML-KEM (by OpenSSL; the Rust side has AWS-LC's).
"""

import hashlib
import hmac
import json
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

CHACHA, AES = 0, 1  # bit numbers in a set of suites, and their order on the wire
OFFER, ACCEPT = 17, 18  # places among the control records
STRIPES = 16


# ---- how records are written: postcard's integers are little-endian base 128


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def read_varint(data):
    value = shift = 0
    while True:
        byte, data = data[0], data[1:]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data


def offer_record(offer):
    mlkem = offer["mlkem"]
    return (
        varint(OFFER)
        + varint(offer["number"])
        + varint(offer["receiver"])
        + offer["x25519"]
        + varint(len(mlkem))
        + mlkem
    )


def accept_record(accept):
    mlkem = accept["mlkem"]
    return (
        varint(ACCEPT)
        + varint(accept["number"])
        + varint(accept["receiver"])
        + varint(accept["suite"])
        + accept["x25519"]
        + varint(len(mlkem))
        + mlkem
    )


def read_record(data):
    kind, data = read_varint(data)
    record = {}
    record["number"], data = read_varint(data)
    record["receiver"], data = read_varint(data)
    if kind == ACCEPT:
        record["suite"], data = read_varint(data)
    else:
        assert kind == OFFER, kind
    record["x25519"], data = data[:32], data[32:]
    length, data = read_varint(data)
    record["mlkem"] = data
    assert len(data) == length
    assert record["receiver"] & 0xFF == 0
    return record


# ---- what both sides compute


def transcript(context, offer, accept):
    h = hashlib.sha256()
    h.update(b"clusternet/1 channel")
    h.update(bytes.fromhex(context["network"]))
    for party in (context["offerer"], context["answerer"]):
        h.update(struct.pack("<Q", party["serial"]))
        h.update(bytes.fromhex(party["key"]))
        h.update(struct.pack("<QB", party["incarnation"], party["suites"]))
    h.update(struct.pack("<QII", offer["number"], offer["receiver"], accept["receiver"]))
    h.update(bytes([accept["suite"]]))
    h.update(offer["x25519"] + accept["x25519"] + offer["mlkem"] + accept["mlkem"])
    return h.digest()


def keys(salt, mlkem, x25519):
    """Of each stripe: what the offerer seals with, then what the answerer does."""
    prk = hmac.digest(salt, mlkem + x25519, "sha256")

    def expand(direction, stripe):
        info = b"clusternet/1 channel key" + bytes([direction, stripe])
        return hmac.digest(prk, info + b"\x01", "sha256")  # one block is 32 bytes

    return [[expand(0, stripe), expand(1, stripe)] for stripe in range(STRIPES)]


def choose(context):
    both = context["offerer"]["suites"] & context["answerer"]["suites"]
    return next(suite for suite in (AES, CHACHA) if both >> suite & 1)


def x25519_public(secret):
    return secret.public_key().public_bytes_raw()


def x25519_shared(secret, public):
    return secret.exchange(X25519PublicKey.from_public_bytes(public))


def answer(context, offer, receiver, secret):
    """The answer, its shared secrets and keys."""
    mlkem, ciphertext = MLKEM768PublicKey.from_public_bytes(offer["mlkem"]).encapsulate()
    accept = {
        "number": offer["number"],
        "receiver": receiver,
        "suite": choose(context),
        "x25519": x25519_public(secret),
        "mlkem": ciphertext,
    }
    shared = mlkem, x25519_shared(secret, offer["x25519"])
    return accept, shared, keys(transcript(context, offer, accept), *shared)


def complete(context, offer, accept, decapsulation, secret):
    """The offerer's shared secrets and keys."""
    assert accept["number"] == offer["number"] and accept["suite"] == choose(context)
    shared = decapsulation.decapsulate(accept["mlkem"]), x25519_shared(secret, accept["x25519"])
    return shared, keys(transcript(context, offer, accept), *shared)


def aead(suite, key):
    return AESGCM(key) if suite == AES else ChaCha20Poly1305(key)


def seal(suite, key, receiver, counter, text):
    header = struct.pack("<B3xIQ", 0x10, receiver, counter)
    nonce = struct.pack("<4xQ", counter)
    return header + aead(suite, key).encrypt(nonce, text, header)


def open_message(suite, key, datagram):
    header = datagram[:16]
    kind, receiver, counter = struct.unpack("<B3xIQ", header)
    assert kind == 0x10 and header[1:4] == bytes(3)
    text = aead(suite, key).decrypt(struct.pack("<4xQ", counter), datagram[16:], header)
    return receiver, counter, text


def place(number, count, kind, segment, packet):
    return struct.pack("<HHBxH", number, count, kind, segment) + packet


# ---- a decapsulation key as AWS-LC takes it: FIPS 203, algorithms 7, 8, 9, 11, 13 and 16, of which only the secret half is needed

Q = 3329


def zeta(i):
    return pow(17, int(f"{i:07b}"[::-1], 2), Q)


def ntt(f):
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, 256, 2 * length):
            z, i = zeta(i), i + 1
            for j in range(start, start + length):
                t = z * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
        length //= 2
    return f


def small(sigma, n):
    bits = hashlib.shake_256(sigma + bytes([n])).digest(128)
    bit = lambda i: bits[i // 8] >> i % 8 & 1
    return [(bit(4 * i) + bit(4 * i + 1) - bit(4 * i + 2) - bit(4 * i + 3)) % Q for i in range(256)]


def encode12(f):
    value = sum(x << 12 * i for i, x in enumerate(f))
    return value.to_bytes(384, "little")


def expanded(seed, encapsulation_key):
    sigma = hashlib.sha3_512(seed[:32] + bytes([3])).digest()[32:]
    secret = b"".join(encode12(ntt(small(sigma, n))) for n in range(3))
    return secret + encapsulation_key + hashlib.sha3_256(encapsulation_key).digest() + seed[32:]


# ---- vectors


def hexed(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: hexed(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [hexed(inner) for inner in value]
    return value


def fixed(label, length=32):
    return hashlib.shake_256(b"test vector " + label.encode()).digest(length)


def vector(label, suites):
    def party(name, serial, offered):
        secret = X25519PrivateKey.from_private_bytes(fixed(f"{label} static {name}"))
        return {
            "serial": serial,
            "key": x25519_public(secret).hex(),
            "incarnation": int.from_bytes(fixed(f"{label} incarnation {name}", 8), "little"),
            "suites": offered,
        }

    context = {
        "network": fixed(f"{label} network", 16).hex(),
        "offerer": party("offerer", 5, suites[0]),
        "answerer": party("answerer", 300, suites[1]),
    }
    secrets = [
        X25519PrivateKey.from_private_bytes(fixed(f"{label} x25519 {n}")) for n in range(2)
    ]
    seed = fixed(f"{label} mlkem", 64)
    decapsulation = MLKEM768PrivateKey.from_seed_bytes(seed)
    offer = {
        "number": 77_000,
        "receiver": 0xABCDEF00,
        "x25519": x25519_public(secrets[0]),
        "mlkem": decapsulation.public_key().public_bytes_raw(),
    }
    accept, shared, all_keys = answer(context, offer, 0x01020300, secrets[1])
    made = {
        "label": label,
        "context": context,
        "x25519_secrets": [secret.private_bytes_raw() for secret in secrets],
        "mlkem_seed": seed,
        "decapsulation_key": expanded(seed, offer["mlkem"]),
        "offer": offer_record(offer),
        "accept": accept_record(accept),
        "shared": {"mlkem": shared[0], "x25519": shared[1]},
        "transcript": transcript(context, offer, accept),
        "keys": all_keys,
        "messages": [],
    }
    packet = bytes.fromhex("4500001e000000004011000a0a6300010a630002") + b"0123456789"
    texts = [
        (0, 1, 0, b""),
        (0, 0, 1, place(0, 1, 0, 0, packet)),
        (1, 0, 0, place(0, 1, 1, 0, packet)),
        (1, 15, 2**32 - 1, place(2, 45, 2, 1340, fixed("slice", 1340))),
        (0, 2, 2**31, place(44, 45, 3, 1200, b"the last slice")),
    ]
    receivers = [accept["receiver"], offer["receiver"]]
    for sender, stripe, counter, text in texts:
        receiver = receivers[sender] | stripe
        key = all_keys[stripe][sender]
        datagram = seal(accept["suite"], key, receiver, counter, text)
        made["messages"].append(
            {"from": sender, "stripe": stripe, "counter": counter, "text": text, "datagram": datagram}
        )
    return made


def write(path):
    vectors = [vector("aes", (3, 3)), vector("chacha", (3, 1))]
    with open(path, "w") as file:
        json.dump(hexed(vectors), file, indent=1)
        file.write("\n")


def check(path):
    with open(path) as file:
        vectors = json.load(file)
    for v in vectors:
        blob = lambda name: bytes.fromhex(v[name])
        context = v["context"]
        offer, accept = read_record(blob("offer")), read_record(blob("accept"))
        assert offer_record(offer) == blob("offer") and accept_record(accept) == blob("accept")
        secrets = [
            X25519PrivateKey.from_private_bytes(bytes.fromhex(s)) for s in v["x25519_secrets"]
        ]
        decapsulation = MLKEM768PrivateKey.from_seed_bytes(blob("mlkem_seed"))
        assert decapsulation.public_key().public_bytes_raw() == offer["mlkem"]
        assert expanded(blob("mlkem_seed"), offer["mlkem"]) == blob("decapsulation_key")
        shared, all_keys = complete(context, offer, accept, decapsulation, secrets[0])
        assert hexed(shared) == [v["shared"]["mlkem"], v["shared"]["x25519"]]
        assert x25519_shared(secrets[1], offer["x25519"]) == shared[1]
        assert transcript(context, offer, accept) == blob("transcript")
        assert hexed(all_keys) == v["keys"]
        for m in v["messages"]:
            key = all_keys[m["stripe"]][m["from"]]
            receiver = [accept, offer][m["from"]]["receiver"] | m["stripe"]
            datagram, text = bytes.fromhex(m["datagram"]), bytes.fromhex(m["text"])
            assert open_message(accept["suite"], key, datagram) == (receiver, m["counter"], text)
            assert seal(accept["suite"], key, receiver, m["counter"], text) == datagram
    print(len(vectors), "vectors")


# ---- one side of an exchange


def play():
    side = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["do"] == "offer":
            secret, decapsulation = X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()
            offer = {
                "number": ask["number"],
                "receiver": ask["receiver"],
                "x25519": x25519_public(secret),
                "mlkem": decapsulation.public_key().public_bytes_raw(),
            }
            side = {"offer": offer, "secret": secret, "decapsulation": decapsulation, "seals": 0}
            said = {"record": offer_record(offer)}
        elif ask["do"] == "complete":
            accept = read_record(bytes.fromhex(ask["record"]))
            _, side["keys"] = complete(
                ask["context"], side["offer"], accept, side["decapsulation"], side["secret"]
            )
            side["suite"], side["receiver"] = accept["suite"], accept["receiver"]
            said = {"keys": side["keys"]}
        elif ask["do"] == "answer":
            offer = read_record(bytes.fromhex(ask["record"]))
            secret = X25519PrivateKey.generate()
            accept, _, all_keys = answer(ask["context"], offer, ask["receiver"], secret)
            side = {"keys": all_keys, "suite": accept["suite"], "seals": 1}
            side["receiver"] = offer["receiver"]
            said = {"record": accept_record(accept), "keys": all_keys}
        elif ask["do"] == "seal":
            key = side["keys"][ask["stripe"]][side["seals"]]
            receiver = side["receiver"] | ask["stripe"]
            text = bytes.fromhex(ask["text"])
            said = {"datagram": seal(side["suite"], key, receiver, ask["counter"], text)}
        else:
            assert ask["do"] == "open", ask
            key = side["keys"][ask["stripe"]][1 - side["seals"]]
            receiver, counter, text = open_message(
                side["suite"], key, bytes.fromhex(ask["datagram"])
            )
            said = {"receiver": receiver, "counter": counter, "text": text}
        print(json.dumps(hexed(said)), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", path]:
            write(path)
        case ["check", path]:
            check(path)
        case ["play"]:
            play()
        case _:
            sys.exit(__doc__)
