# SPDX-License-Identifier: MIT
# VDI images that no tool at hand writes, made by tests/images/gen/vdi_image.py; chains; damage and its repair.
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vdi_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vdi_reader.py" "$@"; }
make() # Python over vdi_image: NAME = an image to be saved as NAME.vdi
{
	/usr/bin/python3 -c 'import hashlib, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1] + "/tests/images/gen")
from vdi_image import *
before = set(dir()) | {"before"}
exec(sys.stdin.read())
for name, image in list(vars().items()):
    if isinstance(image, Image):
        image.save(name + ".vdi")
        print(hashlib.sha256(image.read()).hexdigest(), name, file=open(name + ".sha", "w"))' "$SRCDIR"
}

make <<'END'
tiny = sample(block=512, size=100 * 512)
large = sample(block=1 << 20, size=(7 << 20) + 512)
extra = sample(block=4096, extra=512, size=40 * 4096 + 1024)
old_header = sample(block=4096, header_bytes=384, size=99840)
version_0 = sample(version=2, block=65536, size=20 * 65536)
odd = sample(block=65536, size=5 * 65536 + 700)
shuffled = Image(block=65536, size=10 * 65536 - 512).fixed().shuffle()
base = sample(seed=5, block=65536, size=20 * 65536)
child = sample(seed=6, block=4096, size=20 * 65536, kind=DIFF, parent=base, comment=b'libimg parent=base.vdi')
grandchild = sample(seed=7, block=32768, size=22 * 65536, kind=DIFF, parent=child, comment=b'mine\nlibimg parent=child.vdi')
registered = sample(seed=8, block=32768, size=20 * 65536, kind=DIFF, parent=base)
unchecked = sample(seed=9, block=32768, size=20 * 65536, kind=DIFF, parent=base, comment=b'libimg parent=base.vdi')
unchecked.parent_modification = NULL
END
for name in tiny large extra old_header version_0 shuffled base child grandchild unchecked; do
	same "$name" "$(digest $name.vdi)" "$(cut -d' ' -f1 $name.sha)"
	expect 0 imgtool check -q $name.vdi
	vdi_reader verify $name.vdi
done
same "the reader's chain" "$(vdi_reader hash grandchild.vdi child.vdi base.vdi | cut -d' ' -f1)" "$(digest grandchild.vdi)"
imgtool check odd.vdi
imgtool info --json odd.vdi | json 'd["virtual_size"]'

# Written: version 0 is not, the others stay what they are to the reader.
run imgtool write version_0.vdi --offset 0 </dev/null
for name in tiny large extra old_header shuffled; do
	random_bytes 101 30000 | imgtool write -q $name.vdi --offset 12345
	expect 0 imgtool check -q $name.vdi
	vdi_reader verify $name.vdi
	same "$name" "$(vdi_reader hash $name.vdi | cut -d' ' -f1)" "$(digest $name.vdi)"
done

# Parents: by the name that VirtualBox gives, by amend; never a wrong or a changed one, never zeros.
run imgtool checksum registered.vdi
uuid=$(imgtool info --json base.vdi | json 'd["uuid"]')
cp base.vdi "{$uuid}.vdi"
same "by VirtualBox' name" "$(digest registered.vdi)" "$(cut -d' ' -f1 registered.sha)"
rm "{$uuid}.vdi"
imgtool amend -o backing_file=base.vdi registered.vdi
same "by another name" "$(digest registered.vdi)" "$(cut -d' ' -f1 registered.sha)"
imgtool amend -o backing_file=child.vdi registered.vdi
run imgtool checksum -q registered.vdi
imgtool info --chain grandchild.vdi 2>/dev/null | grep backing:
cp base.vdi kept.vdi
echo x | imgtool write -q base.vdi --offset 0
run imgtool checksum -q child.vdi
expect 0 imgtool checksum -q unchecked.vdi
mv kept.vdi base.vdi
mv base.vdi away.vdi
run imgtool checksum -q child.vdi
run imgtool checksum -q --allow-refs none child.vdi
mv away.vdi base.vdi

# Overlays of our own.
imgtool create -q -f vdi p.vdi 5M
random_bytes 102 2000000 | imgtool write -q p.vdi --offset 100
imgtool create -q -f vdi -b p.vdi q.vdi 2>/dev/null
random_bytes 103 1000 | imgtool write -q q.vdi --offset 1000000 2>/dev/null
want=$(digest q.vdi)
same "the reader" "$(vdi_reader hash q.vdi p.vdi | cut -d' ' -f1)" "$want"
imgtool create -q -f vdi other.vdi 5M
imgtool rebase -q -b other.vdi q.vdi 2>/dev/null
same "rebased" "$(digest q.vdi)" "$want"
imgtool rebase -q -b p.vdi q.vdi 2>/dev/null
imgtool commit -q q.vdi 2>/dev/null
same "committed" "$(digest p.vdi)" "$want"
same "and empty" "$(digest q.vdi)" "$want"
imgtool info --json q.vdi | json 'd["format_specific"]["allocated_blocks"], d["file_size"] > 0'
imgtool resize -q q.vdi 7M 2>/dev/null
imgtool flatten -q q.vdi 2>/dev/null
imgtool info --json q.vdi | json 'd["backing"], d["format_specific"]["subformat"], d["virtual_size"]'
same "flattened" "$(imgtool read q.vdi --offset 0 --length 5M | sha256sum | cut -d' ' -f1)" "$want"
for file in p.vdi q.vdi other.vdi; do
	vdi_reader verify $file
done
imgtool create -q -f raw r.raw 1M
run imgtool create -q -f vdi -b r.raw --backing-format raw f.vdi
run imgtool create -q -f vdi -b p.vdi -o subformat=fixed f.vdi

# Damage.
make <<'END'
outside = sample(block=4096, size=40 * 4096); outside.entries[7] = 5000; outside.entries[8] = 5001
twice = sample(block=4096, size=40 * 4096); twice.entries[1] = twice.entries[2] = 3
few = sample(block=4096, size=40 * 4096)
gaps = sample(block=4096, size=40 * 4096)
gaps.entries = [FREE if e in (2, 3, 7) else e for e in gaps.entries]
nobody = sample(block=4096, size=40 * 4096); nobody.uuid = nobody.modification = NULL
orphan = sample(block=4096, size=40 * 4096, kind=DIFF)
undo = sample(block=4096, size=40 * 4096, kind=UNDO)
flags = sample(block=4096, size=40 * 4096); flags.flags = 4
END
printf '\1\0\0\0' | dd of=few.vdi bs=1 seek=388 conv=notrunc status=none
for name in outside twice few gaps nobody orphan undo flags; do
	run imgtool check $name.vdi
done
run imgtool write outside.vdi --offset 0 </dev/null
for name in outside few gaps nobody; do
	run imgtool check --repair $name.vdi
	run imgtool check -q $name.vdi
	vdi_reader verify $name.vdi
done
run imgtool check --repair twice.vdi
run imgtool inspect grandchild.vdi
run imgtool inspect outside.vdi
head -c 1000 large.vdi >cut.vdi
run imgtool info cut.vdi
run imgtool inspect cut.vdi
