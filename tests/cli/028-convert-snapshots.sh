# convert says when it leaves snapshots behind, and keeps them when asked. An overlay can be the result.
truncate -s 16M base.raw
random_bytes 50 9000000 | dd of=base.raw bs=64K conv=notrunc status=none
imgtool convert base.raw a.limg
imgtool snapshot create a.limg@one
random_bytes 51 1000000 | imgtool write a.limg --offset 1234567
imgtool snapshot create a.limg@two
random_bytes 52 500000 | imgtool write a.limg --offset 10M
run imgtool convert a.limg head.limg
run imgtool convert -q a.limg head2.limg
run imgtool convert a.limg@one one.raw
cmp one.raw base.raw
run imgtool convert --snapshots -c zstd a.limg all.limg
for state in "" @one @two; do
	same "all$state" "$(content "all.limg$state")" "$(content "a.limg$state")"
done
imgtool snapshot list --json all.limg | json '[s["name"] for s in d["snapshots"]]'
times() { imgtool snapshot list --json "$1" | json '[(s["name"], s["created_ns"]) for s in d["snapshots"]]'; }
imgtool convert -q --strict=all --snapshots -O qcow2 a.limg all.qcow2
for image in all.limg all.qcow2; do
	same "times of $image" "$(times $image)" "$(times a.limg)"
done
run imgtool convert --snapshots a.limg all.raw
sound all.limg head.limg

# Two roots whose common ancestor is gone are two roots in the copy, and share what they shared.
imgtool create tree.limg 16M
imgtool write tree.limg <base.raw
imgtool snapshot create tree.limg@stem-0
random_bytes 53 10000 | imgtool write tree.limg --offset 1M
imgtool snapshot create tree.limg@left
imgtool revert tree.limg@stem-0
random_bytes 54 10000 | imgtool write tree.limg --offset 2M
imgtool snapshot create tree.limg@right
random_bytes 55 10000 | imgtool write tree.limg --offset 3M
imgtool snapshot create tree.limg@right2
imgtool snapshot delete tree.limg@stem-0
imgtool convert --snapshots tree.limg copy.limg
for image in tree copy; do
	imgtool snapshot list --json $image.limg | json '[(s["name"], next((p["name"] for p in d["snapshots"] if p["id"] == s["parent"]), None)) for s in d["snapshots"]]'
done
for state in "" @left @right @right2; do
	same "copy$state" "$(content "copy.limg$state")" "$(content "tree.limg$state")"
done
sound tree.limg copy.limg
(($(stat -c %b copy.limg) < $(stat -c %b tree.limg) + 256)) || fail "the copy takes $(stat -c %b copy.limg) blocks, the source $(stat -c %b tree.limg)"

# Only what differs from the parent.
run imgtool convert -b a.limg@one a.limg thin.limg
same thin "$(content thin.limg)" "$(content a.limg)"
(($(stat -c %b thin.limg) * 512 < 3000000)) || fail "thin.limg takes $(stat -c %b thin.limg) blocks"
sound thin.limg
run imgtool convert -b a.limg@one a.limg@one nothing.limg
imgtool map --json nothing.limg | json 'all(e["depth"] == 1 or not e["data"] for e in d["extents"])'
ls
