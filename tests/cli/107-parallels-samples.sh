# SPDX-License-Identifier: MIT
# Parallels images that no tool at hand writes, made by tests/images/gen/parallels_image.py; damage and its repair.
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
reader() { /usr/bin/python3 "$SRCDIR/tests/interop/parallels_reader.py" "$@"; }
make() # Python over parallels_image: NAME = an image to be saved as NAME.hdd
{
	/usr/bin/python3 -c 'import hashlib, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1] + "/tests/images/gen")
from parallels_image import *
before = set(dir()) | {"before"}
exec(sys.stdin.read())
for name, image in list(vars().items()):
    if isinstance(image, Image):
        image.save(name + ".hdd")
        print(hashlib.sha256(image.read()).hexdigest(), name, file=open(name + ".sha", "w"))' "$SRCDIR"
}

make <<'END'
small = sample(cluster=512, size=100 * 512)
large = sample(cluster=1 << 20, size=(7 << 20) + 512)
odd = sample(cluster=63 * 512, size=40 * 63 * 512 + 1024, magic=V1)
tight = sample(cluster=4096, size=300 * 4096, magic=V1, tight=True)
desktop = sample(cluster=65536, size=20 * 65536, magic=V1); desktop.in_use = PD17
old = sample(cluster=65536, size=20 * 65536, magic=V1); old.in_use = 0
bitmaps = sample(cluster=4096, size=64 * 4096).extend(bitmaps=2, granularity=8)
section = sample(cluster=4096, size=64 * 4096).extend(sections=[(77, 0, bytes(100))])
more = sample(cluster=4096, size=64 * 4096); more.size -= 5 * 4096; more.sectors -= 40
END
for name in small large odd tight desktop old bitmaps section more; do
	same "$name" "$(digest $name.hdd)" "$(cut -d' ' -f1 $name.sha)"
	expect 0 imgtool check -q $name.hdd
	reader verify $name.hdd
done
imgtool check bitmaps.hdd
imgtool info --json bitmaps.hdd | json 'd["format_specific"]'
imgtool info --json desktop.hdd | json 'd["dirty"], d["format_specific"]["closed_by"]'
run imgtool inspect bitmaps.hdd
run imgtool inspect section.hdd

# Written: dirty bitmaps go, the rest stays what it is to the reader.
for name in small large odd tight desktop old bitmaps section more; do
	random_bytes 101 30000 | imgtool write -q $name.hdd --offset 12345
	expect 0 imgtool check -q $name.hdd || imgtool check --repair $name.hdd
	reader verify $name.hdd
	same "$name" "$(reader hash $name.hdd | cut -d' ' -f1)" "$(digest $name.hdd)"
	imgtool info --json $name.hdd | json 'd["format_specific"].get("closed_by"), d["format_specific"].get("extended_data")'
done
before=$(digest tight.hdd)
imgtool resize -q tight.hdd 10M
expect 0 imgtool check -q tight.hdd
reader verify tight.hdd
imgtool resize -q --shrink tight.hdd $((300 * 4096))
same "resized" "$(digest tight.hdd)" "$before"

# Extensions that have to stay, and damage.
make <<'END'
needed = sample(cluster=4096, size=64 * 4096).extend(sections=[(77, 1, bytes(8))])
transit = sample(cluster=4096, size=64 * 4096).extend(sections=[(77, 2, bytes(8))])
outside = sample(cluster=4096, size=40 * 4096); outside.place[7] = 5000; outside.place[8] = 5001; outside.content.pop(7, 0); outside.content.pop(8, 0)
outside.place = {b: p for b, p in outside.place.items() if b not in (7, 8)}
outside.patches = [(64 + 28, struct.pack('<II', 5000, 5001))]
before_data = sample(cluster=1024, size=400 * 1024); before_data.patches = [(64 + 40, struct.pack('<I', 1))]
twice = sample(cluster=4096, size=40 * 4096); twice.write(1).write(2); twice.place[2] = twice.place[1]
unclosed = sample(cluster=4096, size=40 * 4096); unclosed.in_use = IN_USE
unclosed_twice = sample(cluster=4096, size=40 * 4096); unclosed_twice.write(1).write(2); unclosed_twice.place[2] = unclosed_twice.place[1]
unclosed_twice.in_use = IN_USE
gaps = sample(cluster=4096, size=40 * 4096)
for b in (2, 3, 7, 11): gaps.place.pop(b, 0)
gaps.content = {b: c for b, c in gaps.content.items() if b in gaps.place}
askew = sample(cluster=4096, size=40 * 4096, magic=V1)
askew.patches = [(64, struct.pack('<I', askew.entry(askew.take()) + 3)), (askew.offset(askew.next - 1), b'x' * 8192)]
empty = sample(cluster=4096, size=40 * 4096); empty.flags = 1
sum_wrong = sample(cluster=4096, size=64 * 4096).extend(); sum_wrong.patches = [(sum_wrong.ext_off * 512 + 8, b'wrong')]
ext_outside = sample(cluster=4096, size=64 * 4096); ext_outside.ext_off = 1 << 20
ext_over = sample(cluster=4096, size=64 * 4096).extend(); ext_over.place[5] = ext_over.next - 1; ext_over.content[5] = ext_over.more[ext_over.next - 1]
short = sample(cluster=4096, size=40 * 4096); short.nr = 39
high = sample(cluster=4096, size=40 * 4096, magic=V1); high.sectors |= 1 << 40
END
for name in needed transit outside before_data twice unclosed unclosed_twice gaps askew empty sum_wrong ext_outside ext_over short high; do
	run imgtool check $name.hdd
done
for name in needed transit outside before_data unclosed_twice; do
	run imgtool write $name.hdd --offset 0 </dev/null
done
for name in unclosed high; do
	same "$name" "$(digest $name.hdd)" "$(cut -d' ' -f1 $name.sha)"
done
echo more | imgtool write unclosed.hdd --offset 100000
imgtool info --json unclosed.hdd | json 'd["dirty"]'
cp askew.hdd cut_askew.hdd
before=$(digest askew.hdd)
for name in askew outside before_data gaps empty sum_wrong ext_outside unclosed high; do
	run imgtool check --repair $name.hdd
	run imgtool check -q $name.hdd
done
same "in line" "$(digest askew.hdd)" "$before"

# Made smaller, such an image comes in line as well: what is cut off leaves nothing behind.
imgtool resize -q --shrink cut_askew.hdd $((20 * 4096))
imgtool resize -q --shrink askew.hdd $((20 * 4096))
run imgtool check cut_askew.hdd
same "shorter" "$(digest cut_askew.hdd)" "$(digest askew.hdd)"
same "length" "$(stat -c %s cut_askew.hdd)" "$(stat -c %s askew.hdd)"
for name in askew cut_askew outside before_data gaps empty sum_wrong ext_outside unclosed; do
	reader verify $name.hdd
done
run imgtool check --repair twice.hdd
run imgtool check --repair needed.hdd
for name in gaps sum_wrong empty; do
	same "$name" "$(digest $name.hdd)" "$(cut -d' ' -f1 $name.sha)"
done
run imgtool inspect twice.hdd
run imgtool inspect sum_wrong.hdd
head -c 70 large.hdd >cut.hdd
run imgtool info cut.hdd
run imgtool inspect cut.hdd
