# External data files: made, written and read as qemu-img does, opened only as the policy for references allows, and locked.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" | cut -d' ' -f1; }
judged()
{
	qemu-img check -q "$1" >log 2>&1 || { cat log; fail "qemu-img check"; }
	expect 0 imgtool check -q "$1"
	qemu-img convert -O raw "$1" judge.raw
	same "qemu-img's content" "$(digest -f raw judge.raw)" "$(digest "$1")"
	rm judge.raw
}

random_bytes 53 700000 >junk
for options in data_file=a.data data_file=a.data,data_file_raw=on data_file=a.data,cluster_size=4K,preallocation=metadata \
	data_file=a.data,extended_l2=on,data_file_raw=on; do
	rm -f a.qcow2 a.data
	run imgtool create -o $options a.qcow2 9M
	same "length of the data file" "$(stat -c %s a.data)" 9437184
	judged a.qcow2
	imgtool write -q a.qcow2 --offset 100000 <junk
	qemu-io -f qcow2 -c 'write -q -P 5 3M 1M' -c 'write -q -z 3500k 100k' -c 'discard -q 500k 64k' a.qcow2 >log || fail "$(cat log)"
	imgtool write -q a.qcow2 --offset 3M <junk
	imgtool write -q a.qcow2 --offset 8M </dev/null
	judged a.qcow2
	imgtool resize -q a.qcow2 20M
	judged a.qcow2
	imgtool resize -q --shrink a.qcow2 4M
	judged a.qcow2
	same "length of the data file" "$(stat -c %s a.data)" 4194304
	case $options in *raw=on*) same "the data file" "$(sha a.data)" "$(digest a.qcow2)" ;; esac
	imgtool info --json a.qcow2 | json 'd["format_specific"]["data_file"], d["format_specific"]["data_file_raw"]'
done

# info looks at nothing that the image names; reading needs it.
mv a.data b.data
imgtool info --json a.qcow2 | json 'd["format_specific"]["data_file"]'
run imgtool check -q a.qcow2
run imgtool checksum a.qcow2
run imgtool write a.qcow2 --offset 0 </dev/null
mv b.data a.data
run imgtool checksum --allow-refs none a.qcow2
mkdir elsewhere
mv a.data elsewhere
ln -s elsewhere/a.data a.data
expect 0 imgtool checksum a.qcow2
mv elsewhere/a.data ..data.$$ && ln -sf "$PWD/..data.$$" a.data
mkdir inner && mv a.qcow2 inner/ && ln -s ../..data.$$ inner/a.data
run imgtool checksum inner/a.qcow2
expect 0 imgtool checksum --allow-refs any inner/a.qcow2
rm inner/a.data && mkfifo inner/a.data
expect 6 timeout 20 "${tool[@]}" checksum inner/a.qcow2
cat err
rm inner/a.data && ln inner/a.qcow2 inner/a.data
run imgtool checksum inner/a.qcow2

# Nothing is clobbered, nothing is left behind, nothing lies outside.
echo precious >c.data
run imgtool create -o data_file=c.data c.qcow2 1M
run imgtool create --force -o data_file=c.data c.qcow2 1M
cat c.data
run imgtool create -o data_file=../outside c.qcow2 1M
run imgtool create -o data_file=/outside c.qcow2 1M
run imgtool create -o data_file=nbd:host c.qcow2 1M
run imgtool create -o data_file=c.qcow2 c.qcow2 1M
run imgtool create -o data_file=d.data,cluster_size=1 c.qcow2 1M
run imgtool convert -q -o data_file=c.data junk c.qcow2
ls c.qcow2 d.data .*.tmp 2>/dev/null || true
run imgtool convert -q -o data_file=d.data,data_file_raw=on junk d.qcow2
judged d.qcow2
cmp -n 700000 junk d.data
run imgtool convert -q -c zstd -o data_file=e.data junk e.qcow2
run imgtool snapshot create d.qcow2@a
judged d.qcow2

# Two images on one data file exclude each other, and qemu-io is told so as well.
cp d.qcow2 twin.qcow2
coproc writer { qemu-io -f qcow2 d.qcow2 2>&1; }
writer_pid=$!
echo 'write -P 9 0 512' >&"${writer[1]}"
read -r _ <&"${writer[0]}"
run imgtool write twin.qcow2 --offset 0 <junk
run imgtool checksum twin.qcow2
echo quit >&"${writer[1]}"
wait "$writer_pid"
expect 0 imgtool checksum twin.qcow2

# A backing file beside it.
imgtool create -o data_file=o.data -b d.qcow2 o.qcow2
imgtool write -q o.qcow2 --offset 300000 <<<hello
judged o.qcow2
run imgtool create -o data_file=p.data,data_file_raw=on -b d.qcow2 p.qcow2
ls p.data p.qcow2 2>/dev/null || true
run imgtool flatten -q o.qcow2
judged o.qcow2

# A comma in a name is written twice.
imgtool create -q -o 'data_file=a,,b.data,cluster_size=4K' comma.qcow2 1M
imgtool info --json comma.qcow2 | json 'd["block_size"], d["format_specific"]["data_file"]'
ls a,b.data
judged comma.qcow2
