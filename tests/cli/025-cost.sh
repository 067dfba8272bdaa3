# The cost of a snapshot does not depend on the image; one flush is one fdatasync.
need strace
# A leak checker cannot work under strace.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
# What a command writes to the image, its last argument. (Instrumented programs also write what they counted.)
written()
{
	local image=${*: -1}
	strace -f -qq -P "$PWD/${image%@*}" -e trace=write,pwrite64,pwritev,pwritev2,copy_file_range,sendfile -o trace "$IMGTOOL" "$@"
	awk '{ n = $NF; if (n ~ /^[0-9]+$/) total += n } END { print total + 0 }' trace
}
imgtool create small.limg 16M
random_bytes 19 1000000 | imgtool write small.limg
truncate -s 1G big.raw
for i in $(seq 0 7); do
	random_bytes $((20 + i)) 30000000 | dd of=big.raw bs=64K seek=$((i * 120000000)) oflag=seek_bytes conv=notrunc status=none
done
imgtool convert big.raw big.limg
for image in small big; do
	for verb in "snapshot create" revert "snapshot delete"; do
		# shellcheck disable=SC2086
		bytes=$(written $verb $image.limg@x)
		((bytes > 0)) || fail "strace saw nothing of $verb"
		((bytes < 131072)) || fail "$verb of the $image image writes $bytes bytes"
	done
done
sound big.limg
imgtool create many.limg 16M
for i in $(seq 100); do
	imgtool snapshot create "many.limg@s$i"
done
bytes=$(written snapshot create many.limg@last)
((bytes < 131072)) || fail "the 101st snapshot writes $bytes bytes"
imgtool snapshot list --json many.limg | json 'len(d["snapshots"])'
sound many.limg
