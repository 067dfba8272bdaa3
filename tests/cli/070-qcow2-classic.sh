# SPDX-License-Identifier: MIT
# Mistakes that writers of qcow2 have made: bits that are not theirs, references that stay, space that is never used again, refcount
# structures at the limits of their tables. qemu-img is the judge.
need qemu-img qemu-io

field() # FILE OFFSET BYTES: a big-endian number
{
	/usr/bin/python3 -c 'import sys
f = open(sys.argv[1], "rb"); f.seek(int(sys.argv[2])); print(hex(int.from_bytes(f.read(int(sys.argv[3])), "big")))' "$@"
}

set_field() # FILE OFFSET BYTES VALUE
{
	/usr/bin/python3 -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); f.write(int(sys.argv[4], 0).to_bytes(int(sys.argv[3]), "big"))' "$@"
}

sound_too()
{
	expect 0 imgtool check -q "$1"
	expect 0 qemu-img check "$1"
}

# Unknown autoclear bits go with the first change, not with a read; unknown compatible bits stay through every change.
imgtool create a.qcow2 8M
set_field a.qcow2 80 8 0xf000000000000002
set_field a.qcow2 88 8 0x8000000000000010
imgtool read a.qcow2 >/dev/null
imgtool check -q a.qcow2
same "autoclear after reading" "$(field a.qcow2 88 8)" 0x8000000000000010
printf x | imgtool write a.qcow2
same "autoclear after writing" "$(field a.qcow2 88 8)" 0x0
imgtool snapshot create a.qcow2@s
imgtool resize -q a.qcow2 64M
imgtool snapshot delete a.qcow2@s
same "compatible bits" "$(field a.qcow2 80 8)" 0xf000000000000002
sound_too a.qcow2

# An unknown extension and unknown header fields stay, too.
/usr/bin/python3 - "$SRCDIR/tests/images/gen" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from qcow2_hostile import long_header
img = long_header(160)()
img.b[128:136] = b"not ours"
img.save('fields.qcow2')
END
printf x | imgtool write fields.qcow2
imgtool snapshot create fields.qcow2@s
imgtool resize -q fields.qcow2 16M
for text in 'not ours' 'after the header'; do
	same "'$text' in the header" "$(head -c 512 fields.qcow2 | grep -c "$text")" 1
done
sound_too fields.qcow2

# Compressed clusters that cross host clusters lose all their references.
random_bytes 3 2000000 >r.raw
head -c 1000000 /dev/zero | tr '\0' 'z' >>r.raw
truncate -s 4M r.raw
imgtool convert -q -O qcow2 -c zlib -o cluster_size=4096 r.raw packed.qcow2
sound_too packed.qcow2
imgtool snapshot create packed.qcow2@s
head -c 4M /dev/zero | tr '\0' 'n' | imgtool write packed.qcow2
sound_too packed.qcow2
imgtool snapshot delete packed.qcow2@s
sound_too packed.qcow2
imgtool zero packed.qcow2 --offset 0 --length 4M 2>/dev/null || head -c 4M /dev/zero | imgtool write packed.qcow2
sound_too packed.qcow2

# Whatever is freed is used again: the file does not grow for ever.
imgtool create cycle.qcow2 64M
random_bytes 4 1000000 | imgtool write cycle.qcow2
cycle()
{
	imgtool snapshot create cycle.qcow2@s
	random_bytes "$1" 1000000 | imgtool write cycle.qcow2
	imgtool snapshot delete cycle.qcow2@s
}
for i in {1..5}; do
	cycle "$i"
done
size=$(stat -c %s cycle.qcow2)
for i in {6..40}; do
	cycle "$i"
done
((  $(stat -c %s cycle.qcow2) <= size + 1048576 )) || fail "the file grew from $size to $(stat -c %s cycle.qcow2)"
sound_too cycle.qcow2

# Refcount blocks that count themselves, and a table that outgrows its cluster: 64-bit refcounts in 512 bytes count 64 clusters a
# block, 4096 a cluster of the table.
imgtool create -o cluster_size=512,refcount_bits=64 small.qcow2 16M
for at in 0 1 2 3 5 8 13; do
	random_bytes $at 700000 | imgtool write small.qcow2 --offset ${at}M
done
sound_too small.qcow2
((  $(field small.qcow2 56 4) > 1 )) || fail "the refcount table did not grow"
for at in 0 3 13; do
	imgtool read small.qcow2 --offset ${at}M --length 700000 | cmp - <(random_bytes $at 700000)
done
imgtool snapshot create small.qcow2@a
random_bytes 99 3000000 | imgtool write small.qcow2 --offset 4M
sound_too small.qcow2
imgtool create -o cluster_size=512,refcount_bits=1 bits.qcow2 4M
random_bytes 5 3000000 | imgtool write bits.qcow2
sound_too bits.qcow2
expect 6 imgtool snapshot create bits.qcow2@a
sound_too bits.qcow2

# Any window of deflate is read: QEMU writes 4 KiB, others 32.
/usr/bin/python3 - "$SRCDIR/tests/images/gen" <<'END'
import sys, zlib
sys.path.insert(0, sys.argv[1])
from qcow2_image import Image
img = Image(cluster_bits=16, size=1 << 20)
c = zlib.compressobj(9, zlib.DEFLATED, -15)
text = bytes(range(256)) * 60 + b'far' * 5000
text = (text * 9)[:65536]
z = c.compress(text) + c.flush()
at = img.entry_off(0)
off = img.alloc()
img.b[off:off + len(z)] = z
img.put(at, img.descriptor(off, (off + len(z) - 1) // 512 - off // 512))
img.finish().save('window.qcow2')
open('window.raw', 'wb').write(text)
END
imgtool read window.qcow2 --length 64K | cmp - window.raw
