# SPDX-License-Identifier: MIT
# Parallels bundles: folders with a descriptor; split storages, plain ones, trees of snapshots, made by
# tests/images/gen/parallels_image.py; what a hostile descriptor can say.
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
reader() { /usr/bin/python3 "$SRCDIR/tests/interop/parallels_reader.py" "$@"; }
make() # Python over parallels_image: NAME = a bundle to be saved as NAME.hdd, with digests of its snapshots
{
	/usr/bin/python3 -c 'import hashlib, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1] + "/tests/images/gen")
from parallels_image import *
before = set(dir()) | {"before"}
exec(sys.stdin.read())
for name, bundle in list(vars().items()):
    if isinstance(bundle, Bundle):
        bundle.save(name + ".hdd")
        with open(name + ".sha", "w") as file:
            for guid in bundle.parents if bundle.hashes else ():
                print(hashlib.sha256(bundle.read(guid)).hexdigest(), guid, file=file)' "$SRCDIR"
}
sum_of() { grep "$2" "$1.sha" | cut -d' ' -f1; }
TOP='{5fbaabe3-6958-40ff-92a7-860e329aab41}'
guid() { printf '%08x-1111-2222-3333-444444444444' "$1"; }

make <<'END'
def chain(seed, start, **more):
    """Root 1, then 2 on it, 3 on it on another branch, the head on 2."""
    one = sample(seed=seed, cluster=4096, **more)
    two = sample(seed=seed + 1, cluster=4096, below=one, **more)
    three = sample(seed=seed + 2, cluster=4096, below=one, **more)
    return {guid(1): one, guid(2): two, guid(3): three, TOP: sample(seed=seed + 3, cluster=4096, below=two, **more)}

tree = {guid(1): NONE, guid(2): guid(1), guid(3): guid(1), TOP: guid(2)}
single = Bundle([{TOP: sample(cluster=4096, size=100 * 4096)}])
split = Bundle([{TOP: sample(seed=n, cluster=4096, size=(20 + n) * 4096, magic=(V1, V2)[n % 2])} for n in range(4)])
plain = Bundle([{TOP: Raw(100 * 512)}, {TOP: Raw(64 * 512, 2)}])
shots = Bundle([chain(10, 0, size=40 * 4096), chain(20, 0, size=24 * 4096 + 512)], tree)
named = Bundle([{guid(7): sample(cluster=4096, size=80 * 4096)}], {guid(7): NONE}, top=guid(7))
base = Raw(80 * 4096)
mixed = Bundle([{guid(1): base, TOP: sample(seed=4, cluster=8192, size=80 * 4096, below=base)}], {guid(1): NONE, TOP: guid(1)})
END
for name in single split plain shots mixed; do
	same "$name" "$(digest $name.hdd)" "$(sum_of $name $TOP)"
	same "$name by its descriptor" "$(digest $name.hdd/DiskDescriptor.xml)" "$(sum_of $name $TOP)"
	expect 0 imgtool check -q $name.hdd
	reader verify $name.hdd
	same "$name, the reader" "$(reader hash $name.hdd | cut -d' ' -f1)" "$(sum_of $name $TOP)"
done
same named "$(digest named.hdd/)" "$(sum_of named "$(guid 7)")"
for n in 1 2 3; do
	same "snapshot $n" "$(digest "shots.hdd@$(guid $n)")" "$(sum_of shots "$(guid $n)")"
	same "snapshot $n in braces" "$(digest "shots.hdd@{$(guid $n)}")" "$(sum_of shots "$(guid $n)")"
	same "snapshot $n, the reader" "$(reader hash shots.hdd "{$(guid $n)}" | cut -d' ' -f1)" "$(sum_of shots "$(guid $n)")"
done
imgtool convert -q --snapshots -O qcow2 shots.hdd shots.qcow2 2>/dev/null
same "copied, the head" "$(digest shots.qcow2)" "$(sum_of shots $TOP)"
for n in 1 2 3; do
	same "copied, snapshot $n" "$(digest "shots.qcow2@$(guid $n)")" "$(sum_of shots "$(guid $n)")"
	imgtool create -q -f qcow2 -b "shots.hdd/DiskDescriptor.xml@$(guid $n)" -F parallels over.qcow2 2>/dev/null
	same "an overlay on snapshot $n" "$(digest over.qcow2)" "$(sum_of shots "$(guid $n)")"
	rm over.qcow2
done
imgtool snapshot list --json shots.hdd | json '[(s["id"], s.get("parent")) for s in d["snapshots"]], d["snapshots"][0]["name"] == "00000001-1111-2222-3333-444444444444"'
imgtool info --json shots.hdd | json 'd["virtual_size"], len(d["snapshots"]), d["format_specific"]'
imgtool info --json plain.hdd | json 'd["format"], d["virtual_size"], d["format_specific"]'
run imgtool checksum "shots.hdd@$(guid 9)"
run imgtool checksum shots.hdd@$TOP
run imgtool snapshot create shots.hdd@new
run imgtool snapshot delete "shots.hdd@$(guid 1)"
run imgtool resize single.hdd 10M
run imgtool map shots.hdd

# What changed between two of its states, of one branch or of two: nothing else did.
for a in "$(guid 1)" "$(guid 2)" "$(guid 3)"; do
	for b in "" "@$(guid 1)" "@$(guid 2)" "@$(guid 3)"; do
		imgtool convert -q -f parallels -O raw --force "shots.hdd@$a" a.raw 2>/dev/null
		imgtool convert -q -f parallels -O raw --force "shots.hdd$b" b.raw 2>/dev/null
		imgtool snapshot diff --json "shots.hdd@$a" "shots.hdd$b" 2>/dev/null >extents || echo "diff $a $b failed"
		/usr/bin/python3 - <<'END'
import json
a, b = (bytearray(open(n, 'rb').read()) for n in ('a.raw', 'b.raw'))
told = 0
for e in json.load(open('extents'))['extents']:
    at, end = e['start'], e['start'] + e['length']
    if e['kind'] == 'zero' and any(b[at:end]) or at < told:
        print('zeros where there are none, or out of order', e)
    a[at:end], told = b[at:end], end
if a != b or open('a.raw', 'rb').read() == b and told:
    print('the rest is not what it was, or too much is told')
END
	done
done
run imgtool snapshot diff "shots.hdd@$(guid 2)" shots.hdd
run imgtool snapshot diff --allow-refs none "shots.hdd@$(guid 2)" shots.hdd

cp -r shots.hdd less.hdd
rm "less.hdd/disk.hdd.0.{$(guid 3)}.hds"
same "without another branch" "$(digest less.hdd)" "$(sum_of shots $TOP)"
run imgtool checksum "less.hdd@$(guid 3)"
run imgtool snapshot diff "less.hdd@$(guid 2)" "less.hdd@$(guid 3)"
run imgtool convert --snapshots -O qcow2 less.hdd less.qcow2
run imgtool check less.hdd

# Written: in the images of the head, over ends of storages; what lies below stays.
cp -r shots.hdd kept.hdd
for name in single split plain shots mixed; do
	imgtool convert -q -O raw $name.hdd $name.raw
	size=$(stat -c %s $name.raw)
	for off in 0 $((size / 3)) $((size - 30000)); do
		random_bytes $off 30000 >junk
		dd if=junk of=$name.raw bs=1 seek=$off conv=notrunc status=none
		imgtool write -q $name.hdd --offset $off <junk
	done
	same "$name, written" "$(digest $name.hdd)" "$(digest -f raw $name.raw)"
	expect 0 imgtool check -q $name.hdd
	reader verify $name.hdd
	same "$name, written, the reader" "$(reader hash $name.hdd | cut -d' ' -f1)" "$(digest -f raw $name.raw)"
done
for n in 1 2 3; do
	same "snapshot $n stays" "$(digest "shots.hdd@$(guid $n)")" "$(sum_of shots "$(guid $n)")"
	for i in 0 1; do
		cmp "shots.hdd/disk.hdd.$i.{$(guid $n)}.hds" "kept.hdd/disk.hdd.$i.{$(guid $n)}.hds"
	done
done
imgtool bench -w --random -s 4096 -c 200 split.hdd >/dev/null 2>&1
expect 0 imgtool check -q split.hdd

# Made.
for options in subformat=bundle subformat=bundle,split_size=128K,cluster_size=4K subformat=plain subformat=plain,split_size=100K,cluster_size=512; do
	rm -rf made.hdd
	mkdir made.hdd
	imgtool convert -q -O parallels -o $options shots.hdd made.hdd/DiskDescriptor.xml 2>/dev/null
	same "$options" "$(digest made.hdd)" "$(digest shots.hdd)"
	expect 0 imgtool check -q made.hdd
	reader verify made.hdd
	imgtool info --json made.hdd | json 'd["virtual_size"], d["format_specific"]'
done
run imgtool create -f parallels -o subformat=bundle made.hdd/DiskDescriptor.xml 1M
run imgtool create -f parallels -o split_size=1M x.hdd 1M
run imgtool create -f parallels -o subformat=bundle,split_size=1K x.hdd 1M
run imgtool create -f parallels -o subformat=split x.hdd 1M
imgtool create -q -f parallels -o subformat=bundle,split_size=1M own.xml 2M
ls own*
run imgtool measure -O parallels -o subformat=bundle,split_size=1M --size 10M

# References: what is not there, not allowed, or not inside.
rm "single.hdd/disk.hdd.0.$TOP.hds"
run imgtool checksum -q single.hdd
run imgtool checksum -q --allow-refs none split.hdd
run imgtool inspect shots.hdd
make <<'END'
def one(**more):
    return Bundle([{TOP: sample(cluster=4096, size=20 * 4096)}], **more)
outside = one(); outside.replace = [('<File>disk.hdd', '<File>../single.hdd/disk.hdd')]
absolute = one(); absolute.replace = [('<File>disk.hdd', '<File>/etc/passwd disk.hdd')]
itself = one(); itself.replace = [('disk.hdd.0.%s.hds' % TOP, 'DiskDescriptor.xml')]
twice = Bundle([{TOP: sample(cluster=4096, size=20 * 4096)}, {TOP: sample(cluster=4096, size=20 * 4096)}])
twice.files[1, TOP] = twice.file(0, TOP)
padding = one(); padding.padding = '1'
encrypted = one(); encrypted.encryption = guid(5)
sectors = one(); sectors.replace = [('<UID>', '<LogicSectorSize>4096</LogicSectorSize><UID>')]
short = one(); short.replace = [('<Disk_size>160<', '<Disk_size>168<')]
gap = Bundle([{TOP: sample(cluster=4096, size=20 * 4096)} for _ in range(2)]); gap.replace = [('<Start>160<', '<Start>168<')]
over = Bundle([{TOP: sample(cluster=4096, size=20 * 4096)} for _ in range(2)]); over.replace = [('<Start>160<', '<Start>152<')]
larger = one(); larger.ends = [24 * 4096]; larger.size = 24 * 4096
shorter = Bundle([{TOP: Raw(4096)}]); shorter.ends = [8192]; shorter.size = 8192
cycle = Bundle([{guid(n): sample(cluster=4096, size=20 * 4096) for n in (1, 2)}], {guid(1): guid(2), guid(2): guid(1)}, top=guid(1))
own_parent = one(parents={TOP: TOP})
no_parent = one(parents={TOP: guid(1)})
no_head = one(parents={guid(1): NONE})
no_image = one(parents={TOP: guid(1), guid(1): NONE})
above_head = one(parents={TOP: NONE, guid(1): TOP})
plain_over = Bundle([{guid(1): sample(cluster=4096, size=20 * 4096), TOP: Raw(20 * 4096)}], {guid(1): NONE, TOP: guid(1)})
double = one(); double.replace = [('<Disk_size>', '<Disk_size>160</Disk_size><Disk_size>')]
two_shots = one(); two_shots.replace = [('<Shot>', '<Shot><GUID>%s</GUID><ParentGUID>%s</ParentGUID></Shot><Shot>' % (TOP, NONE))]
entity = one(); entity.replace = [('<Parallels_disk', '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Parallels_disk')]
external = one(); external.replace = [('<Parallels_disk', '<!DOCTYPE x SYSTEM "file:///etc/passwd"><Parallels_disk')]
undefined = one(); undefined.replace = [('<Disk_size>', '<Disk_size>&b;')]
number = one(); number.replace = [('<Disk_size>', '<Disk_size>99999999999999999999')]
sign = one(); sign.replace = [('<Disk_size>', '<Disk_size>-')]
not_guid = one(); not_guid.replace = [(TOP, '{x}')]
type = one(); type.replace = [('Compressed', 'Packed')]
no_file = one(); no_file.replace = [('<File>disk.hdd.0.%s.hds</File>' % TOP, '')]
cut = one(); cut.replace = [('</Snapshots>', '')]
deep = one(); deep.replace = [('<UID>', '<a>' * 100 + '<UID>')]
nothing = one(); nothing.replace = [('<Storage><Start>', '<Other><Start>'), ('</Storage>', '</Other>')]
geometry = one(); geometry.replace = [('<Cylinders>160<', '<Cylinders>161<')]
blocksize = one(blocksize=8192)
many = one(parents={TOP: NONE, **{guid(n): NONE for n in range(1, 5000)}})
for b in vars().copy().values():
    if isinstance(b, Bundle):
        b.hashes = False
END
cp "twice.hdd/disk.hdd.0.$TOP.hds" "absolute.hdd/"
for name in outside absolute itself twice padding encrypted sectors short gap over larger shorter cycle own_parent no_parent no_head no_image above_head \
	plain_over double two_shots entity undefined number sign not_guid type no_file cut deep nothing many; do
	run imgtool checksum -q $name.hdd
done
for name in external geometry blocksize; do
	run imgtool check $name.hdd
done
for name in outside padding encrypted entity cycle many; do
	run imgtool inspect $name.hdd
done
mkdir empty.hdd
run imgtool info empty.hdd

# Damage in one of the images.
make <<'END'
bad = Bundle([{guid(1): sample(cluster=4096, size=20 * 4096), TOP: sample(cluster=4096, size=20 * 4096)},
              {guid(1): sample(cluster=4096, size=20 * 4096), TOP: sample(cluster=4096, size=20 * 4096)}], {guid(1): NONE, TOP: guid(1)})
bad.storages[0][guid(1)].patches = [(64 + 20, struct.pack('<I', 99999))]
bad.storages[1][TOP].in_use = IN_USE
bad.hashes = False
END
run imgtool check bad.hdd
run imgtool check --repair bad.hdd
run imgtool check bad.hdd
