# commit, rebase, flatten: the content stays what it was.
truncate -s 16M base.raw
random_bytes 30 9000000 | dd of=base.raw bs=64K conv=notrunc status=none
imgtool convert base.raw a.limg
imgtool snapshot create a.limg@v1
random_bytes 31 1000000 | imgtool write a.limg --offset 3M
imgtool snapshot create a.limg@v2
change()
{
	imgtool create -b "$1" "$2"
	random_bytes 32 2000000 | imgtool write "$2" --offset 2500000
	head -c 100000 /dev/zero | imgtool write "$2" --offset 8M
}

change a.limg@v1 o.limg
want=$(content o.limg)
run imgtool rebase -b a.limg@v2 o.limg
same rebase "$(content o.limg)" "$want"
imgtool info o.limg | grep backing
run imgtool rebase -b a.limg o.limg
same rebase "$(content o.limg)" "$want"
run imgtool flatten o.limg
same flatten "$(content o.limg)" "$want"
imgtool info --json o.limg | json 'd["backing"]'
mv a.limg b.limg
same alone "$(content o.limg)" "$want"
mv b.limg a.limg
sound o.limg a.limg
run imgtool flatten o.limg
run imgtool commit o.limg
run imgtool rebase -b o.limg o.limg

# Into the head.
change a.limg p.limg
want=$(content p.limg)
run imgtool commit p.limg
same overlay "$(content p.limg)" "$want"
same parent "$(content a.limg)" "$want"
imgtool map --json p.limg | json 'all(e["depth"] > 0 or not e["allocated"] for e in d["extents"])'
run imgtool commit p.limg
sound p.limg a.limg

# On a snapshot: only while the head is still that.
change a.limg@v2 q.limg
run imgtool commit q.limg
imgtool revert a.limg@v2
want=$(content q.limg)
run imgtool commit q.limg
same overlay "$(content q.limg)" "$want"
same parent "$(content a.limg)" "$want"

# An image with snapshots cannot leave its parent: they stand on it too.
change a.limg@v1 r.limg
imgtool snapshot create r.limg@s
for verb in commit flatten "rebase -b a.limg@v2"; do
	# shellcheck disable=SC2086
	run imgtool $verb r.limg
done
sound r.limg
# What stands on nothing is told so, and is flat already.
imgtool create -q alone.limg 1M
imgtool snapshot create -q alone.limg@s
run imgtool commit alone.limg
run imgtool flatten alone.limg
run imgtool rebase -b a.limg@v2 alone.limg
rm alone.limg
# A parent that was flattened or committed is not what its overlays are recorded to stand on: what the message says helps.
for verb in flatten commit; do
	for name in one second three; do
		imgtool create -q ${below:+-b $below} $name.limg 1M
		below=$name.limg
		[[ $name == three ]] || imgtool write $name.limg --offset ${#name}00K <<<"of $name"
	done
	want=$(content three.limg)
	imgtool $verb second.limg
	run imgtool read three.limg --length 0
	run imgtool rebase -b second.limg three.limg
	run imgtool rebase --unsafe -b second.limg three.limg
	same "after $verb" "$(content three.limg)" "$want"
	rm one.limg second.limg three.limg
	below=
done
# A parent that was moved: --unsafe only writes down where it is.
mkdir sub
mv a.limg sub/
imgtool snapshot delete r.limg@s
run imgtool rebase -b sub/a.limg@v1 r.limg
run imgtool rebase --unsafe -b sub/a.limg@v1 r.limg
run imgtool read r.limg --length 0
run imgtool rebase --unsafe r.limg
imgtool info --json r.limg | json 'd["backing"]'
