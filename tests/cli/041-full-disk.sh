# A full disk is an I/O error; a destination that did not fit leaves nothing; what was full goes on after room was made.
mkdir full
mount -t tmpfs -o size=4M none full 2>/dev/null || skip "cannot mount a small tmpfs (not root?)"
trap 'umount full' EXIT
random_bytes 90 8000000 >big.raw
for dst in full/x.limg full/x.raw; do
	expect 3 imgtool convert big.raw "$dst"
	grep -o 'No space left on device' err
	[[ -z $(ls full) ]] || fail "left behind: $(ls full)"
done
imgtool create full/a.limg 16M
random_bytes 91 1000000 | imgtool write full/a.limg
imgtool snapshot create full/a.limg@s
kept=$(content full/a.limg)
expect 3 imgtool write full/a.limg --offset 2M <big.raw
grep -o 'No space left on device' err
expect 0 imgtool check -q full/a.limg
same snapshot "$(content full/a.limg@s)" "$kept"
expect 0 imgtool revert full/a.limg@s
expect 0 imgtool snapshot delete full/a.limg@s
same head "$(content full/a.limg)" "$kept"
random_bytes 92 1000000 | imgtool write full/a.limg --offset 4M
sound full/a.limg

# A commit that its parent's disk has no room for: the overlay reads as before, is not changed but by a commit, and gets
# away by rebase --unsafe where the parent is lost.
digest()
{
	imgtool checksum -q "$1" | cut -d' ' -f1
}

overlay_of()
{
	rm -f full/*
	random_bytes 93 1000000 >before.raw
	truncate -s 16M before.raw
	imgtool convert -q before.raw -O "$2" "full/p.$2"
	cp "full/p.$2" "before.$2"
	imgtool create -f "$1" -b "full/p.$2" -F "$2" "o.$1" 20M
	imgtool write "o.$1" --offset 500000 <big.raw
	want=$(digest "o.$1")
}

for pair in "limg limg" "qcow2 raw" "vhdx vhdx" "vdi vdi"; do
	echo "$pair"
	# shellcheck disable=SC2086 # two words
	overlay_of $pair
	f=${pair% *} p=full/p.${pair#* }
	expect 3 imgtool commit "o.$f"
	same "read $pair" "$(digest "o.$f")" "$want"
	expect 0 imgtool convert -q --force "o.$f" out.raw
	expect 0 imgtool compare "o.$f" out.raw
	expect 0 imgtool info --chain "o.$f"
	grep -o 'run imgtool commit again' out
	for verb in "write o.$f" "flatten o.$f" "resize o.$f 24M" "rebase -b before.${pair#* } o.$f" "create -f $f -b o.$f child.$f"; do
		# shellcheck disable=SC2086 # words
		expect 6 imgtool $verb </dev/null
		grep -q 'run imgtool commit again' err || fail "imgtool $verb: $(cat err)"
	done
	mv "$p" kept
	if [[ $f == vdi ]]; then
		expect 6 imgtool rebase -u -b before.vdi "o.$f" # emptied step by step: nobody can tell what is left of it
		mv kept "$p"
		continue
	fi
	expect 0 imgtool rebase -u -b "before.${pair#* }" -F "${pair#* }" "o.$f"
	same "rebased $pair" "$(digest "o.$f")" "$want"
	expect 0 imgtool commit "o.$f"
	same "committed $pair" "$(digest "before.${pair#* }")" "$want"
	same "overlay $pair" "$(digest "o.$f")" "$want"
done
