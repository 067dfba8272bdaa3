# SPDX-License-Identifier: MIT
# check of qcow2: a leak, a refcount that is too low, a cleared COPIED flag, an overlap: found with its place, by qemu-img, too;
# --repair mends it, the content stays, and qemu-img agrees.
need qemu-img qemu-io
imgtool create a.qcow2 8M
qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 3M 512K' a.qcow2 >/dev/null
imgtool snapshot create a.qcow2@kept
qemu-io -c 'write -P 3 512K 256K' a.qcow2 >/dev/null
run imgtool check a.qcow2
sum=$(imgtool checksum a.qcow2 | cut -d' ' -f1)
kept=$(imgtool checksum a.qcow2@kept | cut -d' ' -f1)

# damage WHAT: changes b.qcow2. Tables are found by the header, as the format says.
damage()
{
	/usr/bin/python3 - "$1" <<'END'
import os, struct, sys
f = open('b.qcow2', 'r+b')
def get(off, fmt='>Q'):
    f.seek(off)
    return struct.unpack(fmt, f.read(struct.calcsize(fmt)))[0]
def put(off, value, fmt='>Q'):
    f.seek(off)
    f.write(struct.pack(fmt, value))
OFFSET, COPIED = 0x00fffffffffffe00, 1 << 63
block = get(get(48)) & OFFSET
l1 = get(40)
l2 = get(l1) & OFFSET
count = lambda cluster: block + 2 * cluster
own = l2 + 8 * 8        # guest offset 512K, the head's alone
shared = l2 + 8 * 0     # guest offset 0, the snapshot's, too
what = sys.argv[1]
if what == 'leak':
    end = os.stat('b.qcow2').st_size + 65535 >> 16
    put(count(end), 1, '>H')
    put(count(end + 1), 1, '>H')
    os.truncate('b.qcow2', end + 2 << 16)
elif what == 'high':
    put(count((get(own) & OFFSET) >> 16), 7, '>H')
elif what == 'low':
    put(count((get(shared) & OFFSET) >> 16), 1, '>H')
elif what == 'free':
    put(count((get(own) & OFFSET) >> 16), 0, '>H')
elif what == 'copied':
    put(own, get(own) & ~COPIED)
elif what == 'copied-l1':
    put(l1, get(l1) & ~COPIED)
elif what == 'falsely-copied':
    put(shared, get(shared) | COPIED)
elif what == 'overlap':
    put(l2 + 8 * 100, get(own))
elif what == 'on-l2':
    put(l2 + 8 * 100, l2 | COPIED)
elif what == 'on-refcounts':
    put(l2 + 8 * 100, block | COPIED)
elif what == 'no-refcounts':
    put(get(48), 0)
elif what == 'dirty':
    put(72, get(72) | 1)
    put(count((get(shared) & OFFSET) >> 16), 1, '>H')
elif what == 'corrupt':
    put(72, get(72) | 2)
END
}

# The numbers of both programs, in one line: damage leaks.
ours()
{
	imgtool check --json "$1" | json '"%d %d" % (d["damage"], d["leaks"])' || true
}

theirs()
{
	qemu-img check --output=json "$1" 2>/dev/null | json '"%d %d" % (d.get("corruptions", 0), d.get("leaks", 0))' || true
}

for what in leak high low free copied copied-l1 falsely-copied overlap on-refcounts no-refcounts; do
	echo "== $what"
	cp a.qcow2 b.qcow2
	damage $what
	expect 4 imgtool check b.qcow2
	if [[ $what == no-refcounts ]]; then
		grep -o 'refcount 0, but . reference' out | sort -u
	else
		sed 's/0x[0-9a-f]*/PLACE/g' out
	fi
	[[ $what == no-refcounts || $what == on-refcounts ]] || same "numbers of $what" "$(ours b.qcow2)" "$(theirs b.qcow2)"
	before=$(imgtool checksum b.qcow2 | cut -d' ' -f1)
	expect 0 imgtool check --repair -q b.qcow2
	expect 0 imgtool check -q b.qcow2
	expect 0 qemu-img check b.qcow2
	same content "$(imgtool checksum b.qcow2 | cut -d' ' -f1)" "$before"
	same snapshot "$(imgtool checksum b.qcow2@kept | cut -d' ' -f1)" "$kept"
	[[ $what == overlap || $what == on-refcounts ]] || same content "$before" "$sum"
	# A write after it goes where it belongs. (Of two owners in one disk the second does not learn that the first one left.)
	[[ $what != overlap ]] || continue
	qemu-io -c 'write -P 9 512K 64K' -c 'write -P 8 0 64K' b.qcow2 >/dev/null
	expect 0 imgtool check -q b.qcow2
	same snapshot "$(imgtool checksum b.qcow2@kept | cut -d' ' -f1)" "$kept"
done

# What is not repaired by guess: the disk says that its own L2 table is data.
echo "== on-l2"
cp a.qcow2 b.qcow2
damage on-l2
expect 4 imgtool check --repair b.qcow2
sed 's/0x[0-9a-f]*/PLACE/g' out
expect 4 imgtool check -q b.qcow2
