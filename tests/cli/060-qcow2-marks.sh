# SPDX-License-Identifier: MIT
# The dirty bit: who opens for writing mends the refcounts first. The corrupt bit: reading only, until a repair finds nothing wrong.
need qemu-img qemu-io
imgtool create a.qcow2 8M
qemu-io -c 'write -P 1 0 1M' a.qcow2 >/dev/null

# bit FILE: the incompatible features.
bit()
{
	od -An -tu1 -j 79 -N 1 "$1" | tr -d ' '
}

# flag FILE BITS
flag()
{
	printf %b "$(printf '\\x%02x' "$2")" | dd of="$1" bs=1 seek=79 conv=notrunc status=none
}

# QEMU itself leaves the dirty bit when it dies with lazy refcounts.
qemu-img create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 8M
bash -c "qemu-io -c 'write -P 5 1M 256K' -c flush -c 'sigraise 9' lazy.qcow2; true" >/dev/null 2>&1
same "dirty bit" "$(bit lazy.qcow2)" 1
expect 4 imgtool check lazy.qcow2
sed 's/0x[0-9a-f]*/PLACE/g' out
cp lazy.qcow2 repaired.qcow2
imgtool read lazy.qcow2 --offset 1M --length 256K | tr -d '\005' | cmp - /dev/null
same "dirty bit after a read" "$(bit lazy.qcow2)" 1
printf x | imgtool write lazy.qcow2 --offset 0
same "dirty bit after a write" "$(bit lazy.qcow2)" 0
expect 0 imgtool check lazy.qcow2
expect 0 qemu-img check lazy.qcow2
imgtool read lazy.qcow2 --offset 1M --length 256K | tr -d '\005' | cmp - /dev/null
run imgtool check --repair repaired.qcow2 | sed 's/0x[0-9a-f]*/PLACE/g'
same "dirty bit after a repair" "$(bit repaired.qcow2)" 0
expect 0 qemu-img check repaired.qcow2

# Dirty, and damaged beyond refcounts: not written to.
cp a.qcow2 b.qcow2
/usr/bin/python3 - <<'END'
import struct
f = open('b.qcow2', 'r+b')
f.seek(40)
l1 = struct.unpack('>Q', f.read(8))[0]
f.seek(l1)
f.write(struct.pack('>Q', 1 << 63 | 1 << 40))
END
flag b.qcow2 1
printf x >byte
expect 4 imgtool write b.qcow2 --offset 0 <byte
cat err
same "dirty bit" "$(bit b.qcow2)" 1
expect 4 imgtool check --repair -q b.qcow2
same "dirty bit" "$(bit b.qcow2)" 1

# The corrupt bit.
cp a.qcow2 c.qcow2
flag c.qcow2 2
run imgtool check c.qcow2
imgtool read c.qcow2 | cmp - <(imgtool read a.qcow2)
expect 4 imgtool write c.qcow2 --offset 0 <byte
cat err
expect 4 imgtool snapshot create c.qcow2@a
expect 0 imgtool check --repair c.qcow2
same "corrupt bit after a repair" "$(bit c.qcow2)" 0
expect 0 qemu-img check c.qcow2
printf x | imgtool write c.qcow2 --offset 0
expect 0 imgtool check -q c.qcow2
cp b.qcow2 d.qcow2
flag d.qcow2 2
expect 4 imgtool check --repair -q d.qcow2
same "corrupt bit of what stays damaged" "$(bit d.qcow2)" 2
