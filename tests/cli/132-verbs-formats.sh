# SPDX-License-Identifier: MIT
# Every verb on every format: it works, or ends with a status that is documented and one line that says why. The table is the list of what each
# format can; below it stand the reasons.
need qemu-img

mkdir -p in pieces
/usr/bin/python3 -B "$SRCDIR/tests/images/gen/pieces_image.py" pieces
random_bytes 3 300000 >junk
truncate -s 4M junk
qemu-img convert -f raw -O qcow junk in/qcow
qemu-img convert -f raw -O qed junk in/qed
mv pieces/list.dmg in/dmg
mv pieces/p.cloop in/cloop
mv pieces/one.bochs in/bochs
mv pieces/far.asif in/asif
rm -r pieces
formats=(raw limg qcow2 vdi vhd vmdk vhdx parallels qcow qed dmg asif cloop bochs)
for format in raw limg qcow2 vdi vhd vmdk parallels vhdx; do
	imgtool convert -q -f raw -O "$format" junk "in/$format"
done

# One image x, and an overlay o of the same format on it where there can be one, else of limg.
for format in "${formats[@]}"; do
	mkdir "in/$format.dir"
	mv "in/$format" "in/$format.dir/x"
	cd "in/$format.dir" || exit
	case $format in
	limg | qcow2) imgtool snapshot create -q x@s ;;&
	qcow2) imgtool bitmap add -q x b ;;
	esac
	case $format in
	raw | parallels | qcow | qed | dmg | asif | cloop | bochs) imgtool create -q -f limg -b x -F "$format" o ;;
	*) imgtool create -q -f "$format" -b x -F "$format" o ;;
	esac
	cd ../..
done

cell()
{
	local format=$1 status=0
	shift
	(cd work && imgtool "$@" >../out 2>../err </dev/null) || status=$?
	notes=$(grep -c -e ': note: ' -e 'which it names' err || true)
	if ((status == 0)); then
		printf ' %-6s' ok
		return
	fi
	printf ' %-6s' "$status"
	((status >= 2 && status <= 6)) || fail "$format: $*: status $status: $(cat err)"
	[[ $(($(wc -l <err) - notes)) == 1 ]] || fail "$format: $*: not one line: $(cat err)"
	printf '%s|%s|%s\n' "$(grep -v -e ': note: ' -e 'which it names' err | sed "s/format $format /format FORMAT /")" "$label" "$format" >>reasons
}

row()
{
	label=$1
	printf '%-20s' "$label"
	shift
	for format in "${formats[@]}"; do
		rm -rf work
		cp -a "in/$format.dir" work
		cell "$format" "${@//FORMAT/$format}"
	done
	echo
}

: >reasons
printf '%-20s' verb
printf ' %-6s' "${formats[@]}"
echo
row create create -f FORMAT n 1M
row "create -b" create -f FORMAT -b x -F FORMAT n
row info info -f FORMAT x
row "convert to it" convert -q -f raw -O FORMAT ../junk n
row "convert from it" convert -q -f FORMAT -O raw x n
row "convert --snapshots" convert -q --snapshots -f FORMAT -O FORMAT x n
row "convert to stdout" convert -q -f raw -O FORMAT ../junk -
row "snapshot create" snapshot create -f FORMAT x@n
row "snapshot list" snapshot list -f FORMAT x
row "snapshot delete" snapshot delete -f FORMAT x@s
row "snapshot rename" snapshot rename -f FORMAT x@s n
row "snapshot diff" snapshot diff -f FORMAT x@s
row revert revert -f FORMAT x@s
row "bitmap add" bitmap add -f FORMAT x n
row "bitmap list" bitmap list -f FORMAT x
row "bitmap remove" bitmap remove -f FORMAT x b
row "bitmap enable" bitmap enable -f FORMAT x b
row "bitmap disable" bitmap disable -f FORMAT x b
row "bitmap clear" bitmap clear -f FORMAT x b
row "bitmap merge" bitmap merge -f FORMAT x b b
row commit commit o
row rebase rebase -f FORMAT --unsafe x
row flatten flatten -f FORMAT x
row "rebase, of overlay" rebase -b x -F FORMAT o
row "flatten, of overlay" flatten o
row "resize, larger" resize -f FORMAT x +1M
row "resize --shrink" resize -f FORMAT --shrink x -1M
row amend amend -f FORMAT -o uuid=11111111-2222-3333-4444-555555555555 x
row check check -f FORMAT x
row "check --repair" check -f FORMAT --repair x
row inspect inspect -f FORMAT x
row compare compare -f FORMAT -F FORMAT x x
row checksum checksum -f FORMAT x
row map map -f FORMAT x
row measure measure -f FORMAT -O raw x
row "measure for it" measure -O FORMAT --size 1G
row read read -f FORMAT x --length 512
row write write -f FORMAT x --offset 0
row "bench -r" bench -f FORMAT -c 5 x
row "bench -w" bench -f FORMAT -w -c 5 x
row lock lock -f FORMAT x
echo
/usr/bin/python3 - <<'PY'
said = {}
for line in open('reasons'):
    what, verb, format_ = line.strip().split('|')
    said.setdefault(what, {}).setdefault(verb, []).append(format_)
for what in sorted(said):
    print(what.replace('imgtool: ', ''))
    cases = {}
    for verb, formats in said[what].items():
        cases.setdefault(' '.join(formats), []).append(verb)
    for formats, verbs in cases.items():
        print('    %s: %s' % (formats, '; '.join(verbs)))
PY
