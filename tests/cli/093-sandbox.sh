# SPDX-License-Identifier: MIT
# Confined or not, every verb does and says the same; and confined it is, while it runs and when it is killed.
imgtool create seed.qcow2 4M
lacks=$(imgtool doctor --json | json '[f["detail"] for f in d["findings"] if f["name"] == "sandbox" and f["verdict"] != "ok"]')
if [[ $lacks != "[]" ]]; then
	expect 6 imgtool info --sandbox=require seed.qcow2
	expect 6 imgtool doctor --sandbox=require
	expect 0 imgtool info --sandbox=auto seed.qcow2
	skip "no sandbox here: $lacks"
fi
expect 0 imgtool doctor --sandbox=require
grep -q '^ok *sandbox' out

# ---- the same in two folders: once without, once with the sandbox
mkdir off require
nr=0
both()
{
	local mode status
	for mode in off require; do
		status=0
		(cd $mode && "${tool[@]}" "$@" --sandbox=$mode <"${input:-/dev/null}" >../$mode.out 2>../$mode.err) || status=$?
		echo "exit $status" >>$mode.out
	done
	# identities and times are made anew
	sed -i -E -e 's/[0-9a-f]{8}-[0-9a-f-]{27}/UUID/g' -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}/TIME/g' \
		-e 's/("created_ns": )[0-9]+/\1NS/' -e 's/"[0-9a-f]{32}"/HASH/g' -e 's/^(content hash: +).*/\1HASH/' \
		-e 's/[0-9.]+ (s|us|requests\/s|MiB\/s)\b/N/g' off.out require.out off.err require.err
	{ diff off.out require.out && diff off.err require.err; } || fail "imgtool $*: the sandbox makes a difference"
	nr=$((nr + 1))
}
random_bytes 93 300000 >junk
truncate -s 4M outside.raw
for format in limg qcow2; do
	f=$format
	both create -f $f base.$f 4M
	input=../junk both write base.$f --offset 1M
	both create -f $f -b base.$f over.$f
	both create -f $f -b nowhere.$f not.$f
	both create -f $f over.$f 4M
	input=../junk both write over.$f --offset 2M
	both info base.$f
	both info --chain over.$f
	both info --json --chain over.$f
	both check over.$f
	both check --repair over.$f
	both check --json base.$f
	both inspect --json over.$f
	both inspect base.$f
	both compare base.$f over.$f
	both compare --json --all over.$f base.$f
	both checksum over.$f
	both checksum --algo xxh128 over.$f
	both map over.$f
	both measure -O qcow2 over.$f
	both read over.$f --offset 2M --length 100
	both bench -c 10 -d 2 base.$f
	both bench -w -c 10 base.$f
	both snapshot create base.$f@one
	both snapshot create base.$f@one
	both snapshot list --json base.$f
	both snapshot diff base.$f@one
	both revert --save two base.$f@one
	both snapshot rename base.$f@two three
	both snapshot delete base.$f@three
	both convert base.$f@one copy.raw
	both convert --snapshots base.$f copy-snapshots.$f
	both convert -c zstd over.$f copy.$f
	both convert over.$f copy.$f
	both convert --force over.$f copy.$f
	both convert -b base.$f -F $f -O $f over.$f thin.$f
	both resize copy.$f +1M
	both resize copy.$f 1M
	both resize --shrink copy.$f 1M
	both create -f $f base2.$f 4M
	both rebase -b base2.$f over.$f
	both rebase -u -b base2.$f over.$f
	both commit over.$f
	both flatten thin.$f
	both convert --threads 3 -f raw ../outside.raw from-outside.$f
	# references: what is refused stays refused, with the same words
	both create -f $f -b ../outside.raw -F raw astray.$f
	both create -f $f -b ../outside.raw -F raw --allow-refs any astray.$f
	both read astray.$f --length 1
	both read --allow-refs none over.$f --length 1
	both read --allow-refs any astray.$f --length 1
	both commit astray.$f
	both commit --allow-refs any astray.$f
	# failures
	both info nowhere
	both info .
	both write no-such-folder/x
	both create -f $f no-such-folder/x 1M
	both convert base.$f no-such-folder/x
	both compare base.$f nowhere
	both read base.$f@nothing
	both info --limit metadata=1 base.$f
	head -c 100000 off/base.$f >off/cut.$f
	cp off/cut.$f require/cut.$f
	both check cut.$f
	both info --json cut.$f
done
both create -f qcow2 -o data_file=d.data d.qcow2 1M
input=../junk both write d.qcow2
both read d.qcow2 --length 10
both check d.qcow2
both convert -O qcow2 -o data_file=e.data d.qcow2 e.qcow2
both convert -O qcow2 -o data_file=e.data d.qcow2 f.qcow2
both create -f qcow2 -o data_file=../g.data g.qcow2 1M
both amend -o lazy_refcounts=on d.qcow2
both bitmap add base.qcow2 b
both bitmap add base2.qcow2 c
both bitmap merge --from base2.qcow2 base.qcow2 b c
both bitmap list base.qcow2
both bitmap disable base.qcow2 b
both convert --bitmaps base.qcow2 with-bitmaps.qcow2
both info --sandbox=auto base.qcow2
(cd off && ls -A) >off.ls
(cd require && ls -A) >require.ls
diff off.ls require.ls
[[ ! -e g.data ]]
for file in off/*.raw off/*.limg off/d.qcow2 off/e.qcow2 off/copy.qcow2 off/thin.qcow2; do
	[[ -e $file && $file != */cut.* && $file != */astray.* ]] || continue
	same "${file#off/}" "$(imgtool checksum -q --algo xxh128 "$file" | cut -d' ' -f1)" \
		"$(imgtool checksum -q --algo xxh128 "require/${file#off/}" | cut -d' ' -f1)"
done
((nr > 100)) && echo "every verb does the same"

# ---- while it runs
mkfifo input
imgtool create held.limg 4M
"${tool[@]}" write held.limg <input &
writer=$!
exec 3>input
printf abc >&3
wait_for 10 eval 'imgtool lock --json held.limg | grep -q "\"writes\": true"'
grep -E '^(NoNewPrivs|Seccomp):' /proc/$writer/status
expect 5 imgtool write held.limg </dev/null
grep -q "pid $writer (imgtool)" err || cat err
broker=$(pgrep -P $writer)
[[ $(cat "/proc/$broker/comm") == img-broker ]]
# beside the socket and the image only what it was given
find "/proc/$writer/fd" -lname '/*' -printf '%l\n' | grep -v -e '^/dev/' -e '/input$' -e "^$PWD/held.limg\$" -e '\.raw$' || echo "no other files"
{
	kill -9 $writer
	wait $writer || true
} 2>/dev/null
wait_for 10 eval '[[ ! -e /proc/$broker/comm ]]'
echo "the broker ends with it"
exec 3>&-

# ---- killed in a conversion: it takes all with it, and the broker the temporary file
random_bytes 94 30000000 >big.raw
for signal in KILL TERM; do
	mkdir left
	env --default-signal=INT,TERM "${tool[@]}" convert -q -O limg -c zstd:19 -j 1 big.raw left/big.limg 2>err &
	converter=$!
	wait_for 20 eval 'ls -A left | grep -q tmp'
	kill -$signal $converter
	status=0
	{ wait $converter || status=$?; } 2>/dev/null
	wait_for 10 eval '[[ ! $(ls -A left) ]]'
	echo "SIG$signal: exit $status, nothing is left"
	rmdir left
done
# without its broker it can go on with what is open, and says what it cannot
mkdir left
"${tool[@]}" convert -q -O limg -c zstd:19 -j 1 big.raw left/big.limg 2>err &
converter=$!
wait_for 20 eval 'ls -A left | grep -q tmp'
kill -9 "$(pgrep -P $converter)"
status=0
wait $converter || status=$?
echo "exit $status"
cat err
[[ ! -e left/big.limg ]]
