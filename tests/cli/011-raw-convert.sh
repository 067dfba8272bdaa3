# Conversion between raw files keeps content and holes; qemu-img and sha256sum are the judges.
need qemu-img
truncate -s 40M a.raw
random_bytes 2 5000000 | dd of=a.raw bs=64K seek=100 conv=notrunc status=none
random_bytes 3 70000 | dd of=a.raw bs=1 seek=31000001 conv=notrunc status=none
run imgtool convert a.raw b.raw
cmp a.raw b.raw
qemu-img compare a.raw b.raw
run imgtool compare a.raw b.raw
run imgtool convert a.raw b.raw
run imgtool convert --force -j 4 a.raw b.raw
run imgtool convert -O raw a.raw c.anything
cmp a.raw c.anything
(($(stat -c %b b.raw) <= $(stat -c %b a.raw) + 256)) || fail "the copy is not sparse"

# A digest is that of the content.
[[ $(imgtool checksum a.raw | cut -d' ' -f1) == $(sha a.raw) ]] || fail sha256
[[ $(imgtool checksum --algo xxh128 b.raw | cut -d' ' -f1) == $(imgtool checksum --algo xxh128 a.raw | cut -d' ' -f1) ]]
run imgtool checksum --json a.raw
/usr/bin/python3 - "$(imgtool checksum --algo xxh128 a.raw | cut -d' ' -f1)" <<'PY'
import struct, sys, xxhash
data = open("a.raw", "rb").read()
pieces = b"".join(xxhash.xxh3_128_digest(data[i:i + (1 << 20)]) for i in range(0, len(data), 1 << 20))
assert xxhash.xxh3_128_hexdigest(pieces + struct.pack("<Q", len(data))) == sys.argv[1]
PY

# map: what it calls data is data, what it calls zero is zeros.
imgtool map --json a.raw >map
/usr/bin/python3 - <<'PY'
import json
d = json.load(open("map"))
data = open("a.raw", "rb").read()
at = held = 0
for e in d["extents"]:
    assert e["start"] == at and e["data"] != e["zero"] and e["depth"] == 0
    part = data[at:at + e["length"]]
    if e["zero"]:
        assert not any(part)
    else:
        held += e["length"]
        assert data[e["offset"]:e["offset"] + e["length"]] == part
    at += e["length"]
assert at == d["virtual_size"] == len(data)
assert 5000000 <= held < 6 << 20, held
PY

# A name decides about the format only of what is made.
run imgtool info --json c.anything | grep '"format"'
run imgtool measure -O raw a.raw
run imgtool measure --json -O raw --size 1G
run imgtool convert nowhere.raw d.raw
run imgtool convert a.raw nowhere/d.raw
run imgtool convert a.raw@x d.raw
run imgtool convert -O nonsense a.raw d.raw
run imgtool convert -O raw -o colour=red a.raw d.raw
run imgtool convert -O raw -c zstd a.raw d.raw
run imgtool convert -f limg a.raw d.raw
ls
