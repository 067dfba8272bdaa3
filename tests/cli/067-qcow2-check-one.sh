# SPDX-License-Identifier: MIT
# The check of one snapshot: whether it can be restored, whatever is wrong with the rest. qemu-img checks all or nothing.
need qemu-img qemu-io
imgtool create a.qcow2 4M
qemu-io -c 'write -P 1 0 256K' a.qcow2 >/dev/null
imgtool snapshot create a.qcow2@good
qemu-io -c 'write -P 2 1M 256K' a.qcow2 >/dev/null
imgtool snapshot create a.qcow2@bad
qemu-io -c 'write -P 3 2M 64K' a.qcow2 >/dev/null
run imgtool check a.qcow2@good
run imgtool check a.qcow2@bad
run imgtool check a.qcow2
run imgtool check a.qcow2@none

# An L2 table of the second snapshot alone is damaged: its entry for 1 MiB gets a host offset that is no cluster.
/usr/bin/python3 - <<'END'
import struct
f = open('a.qcow2', 'r+b')
h = f.read(104)
nr, at = struct.unpack('>IQ', h[60:72])
tables = []
for _ in range(nr):
    f.seek(at)
    e = f.read(40)
    l1, entries, ids, names = struct.unpack('>QIHH', e[:16])
    extra, = struct.unpack('>I', e[36:40])
    f.seek(l1)
    tables.append(struct.unpack('>Q', f.read(8))[0] & 0x00fffffffffffe00)
    at += (40 + extra + ids + names + 7) & ~7
assert tables[0] != tables[1]
f.seek(tables[1] + 8 * (0x100000 >> 16))
f.write(struct.pack('>Q', 0x123400))
END
run imgtool check a.qcow2@good
run imgtool check a.qcow2@bad
imgtool check --json a.qcow2@bad | json 'd["snapshot"], d["clean"], d["damage"] > 0, d["findings"][0]["snapshot"]' || true
expect 4 imgtool check a.qcow2
expect 2 imgtool check --repair a.qcow2@good
qemu-img check a.qcow2 >out 2>&1 || echo "qemu-img check: $?, of the whole image"
qemu-img check -l snapshot.name=good a.qcow2 >out 2>&1 || grep -o 'unrecognized option.*' out
