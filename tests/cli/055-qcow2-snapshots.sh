# The snapshot cycle on qcow2: after each step the image is whole to qemu-img, and both read the same from every state.
need qemu-img qemu-io

# judged FILE: clean to both.
judged()
{
	qemu-img check -q "$1" >judge.log 2>&1 || { cat judge.log; fail "qemu-img check finds fault with $1"; }
	expect 0 imgtool check -q "$1"
	rm judge.log
}

# state FILE[@SNAP]: digest of what the guest sees, on which qemu-img must agree.
state()
{
	local ours theirs
	ours=$(imgtool checksum -q "$1" | cut -d' ' -f1)
	if [[ $1 == *@* ]]; then
		qemu-img convert -f qcow2 -O raw -l "snapshot.name=${1#*@}" "${1%%@*}" state.raw
	else
		qemu-img convert -f qcow2 -O raw "$1" state.raw
	fi
	theirs=$(sha state.raw)
	rm state.raw
	[[ $ours == "$theirs" ]] || fail "qemu-img reads $1 otherwise"
	echo "$ours"
}

cycle()
{
	local file=$1 junk=$2 first second third
	judged "$file"
	first=$(state "$file")
	run imgtool snapshot create "$file@before"
	judged "$file"
	imgtool write "$file" --offset 70000 <"$junk"
	imgtool write "$file" --offset 9M <"$junk"
	judged "$file"
	same before "$(state "$file@before")" "$first"
	second=$(state "$file")
	[[ $second != "$first" ]] || fail "the write is not to be seen"
	run imgtool snapshot create "$file@after"
	judged "$file"
	qemu-io -f qcow2 -c 'write -q -P 77 1M 3M' -c 'write -q -z 5M 1M' "$file" >qemu-io.log || fail "qemu-io: $(cat qemu-io.log)"
	judged "$file"
	third=$(state "$file")
	same before "$(state "$file@before")" "$first"
	same after "$(state "$file@after")" "$second"
	run imgtool revert --save third "$file@before"
	judged "$file"
	same head "$(state "$file")" "$first"
	same third "$(state "$file@third")" "$third"
	# What qemu-img makes is as good as ours.
	qemu-img snapshot -c theirs "$file"
	judged "$file"
	imgtool write "$file" --offset 1M <"$junk"
	same theirs "$(state "$file@theirs")" "$first"
	judged "$file"
	imgtool snapshot list --json "$file" | json '[(s["id"], s["name"], s["virtual_size"], s["vmstate_size"], s["parent"]) for s in d["snapshots"]]'
	run imgtool snapshot rename "$file@third" 'three & a half'
	judged "$file"
	qemu-img info --output=json "$file" | json '[(s["id"], s["name"], s["vm-state-size"]) for s in d["snapshots"]]'
	qemu-img snapshot -a after "$file"
	same after "$(state "$file")" "$second"
	judged "$file"
	run imgtool snapshot delete "$file@before"
	judged "$file"
	same head "$(state "$file")" "$second"
	run imgtool snapshot delete "$file@after"
	judged "$file"
	same head "$(state "$file")" "$second"
	same 'three & a half' "$(state "$file@three & a half")" "$third"
	run imgtool revert "$file@three & a half"
	judged "$file"
	same head "$(state "$file")" "$third"
	qemu-img snapshot -d theirs "$file"
	judged "$file"
	run imgtool snapshot delete "$file@three & a half"
	judged "$file"
	same head "$(state "$file")" "$third"
	run imgtool snapshot list "$file"
	rm "$file"
}

truncate -s 12M a.raw
random_bytes 31 7000000 | dd of=a.raw bs=64K conv=notrunc status=none
random_bytes 32 1000000 >junk

echo "== as we make it"
imgtool convert -O qcow2 a.raw a.qcow2
cycle a.qcow2 junk
for options in compat=0.10 cluster_size=512,refcount_bits=64 cluster_size=4096,refcount_bits=8 extended_l2=on,cluster_size=16384 \
	cluster_size=2M lazy_refcounts=on; do
	qemu-img convert -f raw -O qcow2 -o "$options" a.raw b.qcow2
	cycle b.qcow2 junk >cycle.log || { cat cycle.log; fail "$options"; }
	rm cycle.log
done
echo "== compressed, on a parent"
qemu-img convert -f raw -O qcow2 -c a.raw c.qcow2
cycle c.qcow2 junk >cycle.log || { cat cycle.log; fail compressed; }
imgtool convert -O qcow2 a.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 d.qcow2
cycle d.qcow2 junk >cycle.log || { cat cycle.log; fail overlay; }
judged base.qcow2

# Snapshots keep their own size; qemu-img agrees.
imgtool create -q -f qcow2 e.qcow2 4M
imgtool write e.qcow2 --offset 3M <junk
small=$(state e.qcow2)
imgtool snapshot create e.qcow2@small
run imgtool resize e.qcow2 2G
judged e.qcow2
imgtool write e.qcow2 --offset 1G <junk
judged e.qcow2
imgtool snapshot create e.qcow2@large
run imgtool revert e.qcow2@small
imgtool info --json e.qcow2 | json 'd["virtual_size"]'
qemu-img info e.qcow2 | grep '^virtual'
same small "$(state e.qcow2)" "$small"
judged e.qcow2
run imgtool revert e.qcow2@large
imgtool info --json e.qcow2 | json 'd["virtual_size"]'
judged e.qcow2
imgtool read e.qcow2 --offset 1G --length 1000000 | cmp - junk

# What changed between two states; cost and ranges follow the difference.
imgtool create -q -f qcow2 f.qcow2 1G
imgtool write f.qcow2 --offset 3M <junk
imgtool snapshot create f.qcow2@one
head -c 65536 junk | imgtool write f.qcow2 --offset 700M
head -c 65536 /dev/zero | imgtool write f.qcow2 --offset 3211264
run imgtool snapshot diff f.qcow2@one f.qcow2
run imgtool snapshot diff f.qcow2@one f.qcow2@one
imgtool snapshot create f.qcow2@two
run imgtool snapshot diff f.qcow2@two
run imgtool snapshot diff f.qcow2@two f.qcow2@one
