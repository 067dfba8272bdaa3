# Formats that are only read: what a generator wrote comes back byte for byte; nothing can be written; each kind of damage is named.
/usr/bin/python3 -B "$SRCDIR/tests/images/gen/pieces_image.py" .
for file in *.dmg *.cloop *.bochs *.asif; do
	before=$(sha "$file")
	imgtool convert -O raw "$file" out.raw || fail "$file"
	cmp out.raw "$file.raw" || fail "$file: content"
	imgtool check -q "$file" || fail "$file: check"
	imgtool convert "$file" out.limg || fail "$file: to limg"
	imgtool compare -q "$file" out.limg || fail "$file: to limg: content"
	imgtool map --json "$file" | json "sum(e['length'] for e in d['extents']) == $(stat -c %s "$file.raw")" | grep -qx True || fail "$file: map"
	# parts of pieces, in no order
	for at in 513 99999 70001 0 262143; do
		cmp <(imgtool read "$file" --offset $at --length 4097) <(tail -c +$((at + 1)) "$file.raw" | head -c 4097) || fail "$file: read at $at"
	done
	expect 6 imgtool write "$file" <<<x
	grep -q 'is only read' err || fail "$file: $(cat err)"
	expect 6 imgtool create -f "${file##*.}" new 1M
	test ! -e new
	imgtool inspect -q "$file" || fail "$file: inspect"
	test "$(sha "$file")" = "$before" || fail "$file: was changed"
	rm out.*
	echo "$file"
done
imgtool info list.dmg | grep compression
imgtool info --json far.asif | json 'd["uuid"], d["virtual_size"], d["block_size"]'
# 500 MiB that nobody wrote stay unwritten
imgtool convert -O raw far.asif out.raw
test "$(stat -c %b out.raw)" -lt 4096
rm out.raw

# An overlay on one of them is an overlay like any other.
imgtool create -b p.cloop -F cloop over.limg
imgtool write over.limg --offset 1000 <<<hello
cmp <(imgtool read over.limg --offset 2000 --length 60000) <(tail -c +2001 p.cloop.raw | head -c 60000)

/usr/bin/python3 -B "$SRCDIR/tests/hostile/pieces.py" "${tool[@]}"
