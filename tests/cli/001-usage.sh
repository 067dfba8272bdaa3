# Usage errors are one line and exit 2; help and version exit 0.
run imgtool --version
run imgtool no-such-verb
run imgtool snapshot
run imgtool snapshot frobnicate
run imgtool create
run imgtool create --no-such-option a.limg 1M
run imgtool create -y a.limg 1M
run imgtool create a.limg
run imgtool create a.limg 12Q
run imgtool create a.limg '5 '
run imgtool create a.limg -5
run imgtool create a.limg 1M too-many
run imgtool create --force=yes a.limg 1M
run imgtool create -F raw a.limg 1M
run imgtool convert one
run imgtool convert -c lzma a b
run imgtool convert -f nonsense a b
run imgtool convert -O nonsense a b
run imgtool rebase --backing-format=nonsense -b a b
run imgtool create -o compression=zstd:99 a.limg 1M
run imgtool convert -O qcow2 -c zstd -o compression_type=zlib a.raw b.qcow2
run imgtool convert -O limg -c none -o cluster_size=4K,compression=zstd a.raw b.limg
run imgtool convert -j many a b
run imgtool snapshot create a.limg
run imgtool snapshot delete @x
run imgtool revert --save
run imgtool write a.limg@snapshot
run imgtool info --allow-refs some a
run imgtool -U
run imgtool write -U a
run imgtool check --repair -U a
run imgtool measure
run imgtool measure --size 1M a
run imgtool bench -r -w a
run imgtool bench -d 0 a
run imgtool bench -c 10 --flush-interval 2 a
run imgtool bench -s 0 a
run imgtool checksum --algo md5 a
run imgtool info ''
run imgtool create new@name 1M
run imgtool create -h
run imgtool help snapshot
imgtool help >overview
imgtool --help | cmp - overview
expect 2 imgtool
cmp err overview
[[ ! -s out ]]
ls
