# SPDX-License-Identifier: MIT
# Every combination of geometry that the generator knows: check finds nothing, as qemu-img does; with a hundred snapshots a table is
# read once.
need qemu-img qemu-io
/usr/bin/python3 - "$SRCDIR/tests/images/gen" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from qcow2_image import Image, sample
for version, orders in ((2, (4,)), (3, (2, 4, 5, 6))):
    for bits in (9, 12, 16, 21):
        for order in orders:
            for extended in (False, True) if version == 3 and bits >= 14 else (False,):
                img = sample(version=version, cluster_bits=bits, size=64 << 20 if bits > 16 else 4 << 20,
                             refcount_order=order, extended=extended)
                img.snapshot()
                img.write(9)
                if version == 3:
                    img.bitmap(granularity_bits=12)
                img.finish().save('v%d-%d-%d%s.qcow2' % (version, bits, order, '-ext' if extended else ''))
END
for file in v*.qcow2; do
	imgtool check -q "$file" || fail "$file"
	qemu-img check -q "$file" || fail "qemu-img: $file"
	imgtool check --metadata --repair -q "$file" || fail "repair of $file"
done
samples=(v*.qcow2)
echo "${#samples[@]}"

# 100 snapshots: one L2 table, if nothing was written between them.
imgtool create many.qcow2 1G
qemu-io -c 'write -P 1 0 8M' many.qcow2 >/dev/null
for i in {1..100}; do
	imgtool snapshot create "many.qcow2@s$i"
done
imgtool check --json many.qcow2 | json 'd["clean"], d["metadata_bytes"] < 1 << 20'
expect 0 qemu-img check many.qcow2
