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
