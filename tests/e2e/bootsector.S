/* SPDX-License-Identifier: MIT */
/*
 * A guest for a PC with a BIOS: what it does is seen on the serial port and on its disk, and it says which of both it
 * has. 16-bit code; as --32, ld -m elf_i386 -Ttext 0x7c00 --oformat binary.
 *
 * Sector 0 is the boot sector, with a partition table as a disk that was partitioned has it. It says hello by INT 10h,
 * loads sectors 1 to 8 and goes on in them. Output is written to the UART (COM1) by the guest itself, so that no
 * terminal sequences come between; input is the BIOS's keyboard (INT 16h), which SeaBIOS feeds from the serial port.
 *
 * The disk (numbers are 32 bits, little-endian):
 *	sector 1		how often this disk was booted
 *	sectors 2 to 8		the rest of this program
 *	sector NOTE_LBA		the number of the tick at which it was last written, every 8th
 *	PATTERN_LBA ...		each sector is one number, over and over: the generation of 'w'
 *	WRITER_LBA ...		the same, the number of the write of 'k'
 *
 * At first, and after 's', it ticks: a line T%08x for every tick of the BIOS's clock, numbered from 1 by a counter in
 * its memory. Commands, one letter each:
 *	s	tick			f	print F%08x lines as fast as it can
 *	w	write the pattern in its next generation; "WROTE %08x"
 *	r	read: "R note=%08x first=%08x last=%08x boots=%08x gen=%08x", where gen is the counter in memory
 *	k	write increasing numbers until 's': "K%08x" after each write returned
 *	m	touch 128 MiB from 16 MiB on, a number to a page; "TOUCHED %08x"
 *	v	their sum: "SUM %08x"
 *	h	read HOLE_OPS times 32 KiB: "READ %08x" with the BIOS's ticks
 *	d	from here on the other one of the first two disks; "DRIVE %08x"
 *	p	power off by ACPI; reboot by: c (port 0xcf9), i (the i8042), 9 (port 0x92), x (triple fault)
 */
	.set	COM1,		0x3f8
	.set	COUNT_BUF,	0x7e00		/* sector 1 */
	.set	DATA_SEG,	0x2000		/* 64 KiB of disk buffer at 0x20000 */
	.set	NOTE_LBA,	40
	.set	PATTERN_LBA,	64
	.set	PATTERN_OPS,	32		/* of 64 sectors: 1 MiB */
	.set	WRITER_LBA,	4096
	.set	WRITER_SLOTS,	2048
	.set	HOLE_LBA,	8192
	.set	HOLE_OPS,	384		/* of 64 sectors: 12 MiB */
	.set	TOUCH_START,	0x1000000
	.set	TOUCH_MIB,	128
	.set	BDA_TICKS,	0x46c

	.code16
	.globl	_start
_start:
	ljmp	$0, $1f
1:	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	movb	%dl, drive
	sti
	cld
	movw	$hello, %si
2:	lodsb
	testb	%al, %al
	jz	3f
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	2b
3:	movw	BDA_TICKS, %ax		/* SeaBIOS keeps the last letter back until its next ticks */
	addw	$3, %ax
4:	hlt
	cmpw	BDA_TICKS, %ax
	jns	4b
	movw	$COUNT_BUF, packet_off
	movl	$1, packet_lba
	movw	$8, packet_count
	call	disk_read
	jmp	main

/* INT 13h, extended: the packet says what. */
disk_read:
	movb	$0x42, %ah
	jmp	disk_go
disk_write:
	movw	$0x4300, %ax
disk_go:
	pushal
	movb	drive, %dl
	movw	$packet, %si
	int	$0x13
	jc	disk_failed
	popal
	ret
disk_failed:
	movw	$failed, %si
	movb	%ah, %bl
	call	puts
	movzbl	%bl, %eax
	call	put_line
4:	hlt
	jmp	4b

putc:					/* al */
	pushw	%dx
	pushw	%ax
	movw	$COM1 + 5, %dx
5:	inb	%dx, %al
	testb	$0x20, %al
	jz	5b
	popw	%ax
	movw	$COM1, %dx
	outb	%al, %dx
	popw	%dx
	ret
puts:					/* ds:si, zero-terminated */
	lodsb
	testb	%al, %al
	jz	6f
	call	putc
	jmp	puts
6:	ret
put_line:				/* eax in hex, and the end of the line */
	call	put_hex
	movb	$'\n', %al
	jmp	putc
put_hex:
	pushal
	movl	%eax, %ebx
	movw	$8, %cx
7:	roll	$4, %ebx
	movb	%bl, %al
	andb	$15, %al
	addb	$'0', %al
	cmpb	$'9', %al
	jbe	8f
	addb	$'a' - '0' - 10, %al
8:	call	putc
	loop	7b
	popal
	ret

hello:	.asciz	"The test guest was loaded.\r\n"
failed:	.asciz	"DISK ERROR "
drive:	.byte	0
packet:
	.byte	16, 0
packet_count:
	.word	0
packet_off:
	.word	0
packet_seg:
	.word	0
packet_lba:
	.quad	0

	.org	446			/* one active partition, Linux, from 1 MiB on: nothing reads it */
	.byte	0x80, 0, 2, 0, 0x83, 0, 2, 0
	.long	2048, 30720
	.org	510
	.word	0xaa55

	.org	512			/* sector 1 */
	.zero	512

	.org	1024			/* sectors 2 to 8, at 0x8000 */
main:
	incl	COUNT_BUF
	movw	$1, packet_count
	call	disk_write
	movw	$m_boot, %si
	call	puts
	movl	COUNT_BUF, %eax
	call	put_line
	movw	BDA_TICKS, %ax
	movw	%ax, last_tick
loop:
	movb	$1, %ah
	int	$0x16
	jz	work
	xorb	%ah, %ah
	int	$0x16
	call	command
work:
	movb	mode, %al
	cmpb	$'f', %al
	je	flood
	cmpb	$'k', %al
	je	writer
	movw	BDA_TICKS, %ax
	cmpw	last_tick, %ax
	jne	tick
	hlt
	jmp	loop

tick:
	movw	%ax, last_tick
	incl	ticks
	movb	$'T', %al
	call	putc
	movl	ticks, %eax
	call	put_line
	testb	$7, ticks
	jnz	loop
	movl	$NOTE_LBA, packet_lba
	movl	ticks, %eax
	call	fill_sector
	movw	$1, packet_count
	call	disk_write
	jmp	loop

flood:
	incl	floods
	movb	$'F', %al
	call	putc
	movl	floods, %eax
	call	put_line
	jmp	loop

writer:
	incl	writes
	movl	writes, %eax
	call	fill_sector
	andl	$WRITER_SLOTS - 1, %eax
	addl	$WRITER_LBA, %eax
	movl	%eax, packet_lba
	movw	$1, packet_count
	call	disk_write
	movb	$'K', %al
	call	putc
	movl	writes, %eax
	call	put_line
	jmp	loop

command:				/* al */
	movw	$commands, %si
1:	movb	(%si), %bl
	testb	%bl, %bl
	jz	2f
	cmpb	%al, %bl
	je	3f
	addw	$3, %si
	jmp	1b
2:	ret
3:	jmp	*1(%si)

set_mode:
	movb	%al, mode
	ret

do_write:
	incl	generation
	movl	generation, %eax
	movw	$64 * 128, %cx
	call	fill
	movl	$PATTERN_LBA, packet_lba
	movw	$PATTERN_OPS, %cx
1:	movw	$64, packet_count
	call	disk_write
	addl	$64, packet_lba
	loop	1b
	movw	$m_wrote, %si
	call	puts
	movl	generation, %eax
	jmp	put_line

do_read:
	movw	$m_note, %si
	movl	$NOTE_LBA, %eax
	call	show_sector
	movw	$m_first, %si
	movl	$PATTERN_LBA, %eax
	call	show_sector
	movw	$m_last, %si
	movl	$PATTERN_LBA + 64 * PATTERN_OPS - 1, %eax
	call	show_sector
	movw	$m_boots, %si
	movl	$1, %eax
	call	show_sector
	movw	$m_gen, %si
	call	puts
	movl	generation, %eax
	jmp	put_line

show_sector:				/* si: text, eax: sector */
	movl	%eax, packet_lba
	call	puts
	movw	$DATA_SEG, packet_seg
	movw	$0, packet_off
	movw	$1, packet_count
	call	disk_read
	movw	$DATA_SEG, %ax
	movw	%ax, %fs
	movl	%fs:0, %eax
	jmp	put_hex

fill_sector:
	movw	$128, %cx
fill:					/* the buffer: cx times eax; the packet points to it */
	pushw	%es
	movw	$DATA_SEG, %di
	movw	%di, %es
	movw	%di, packet_seg
	xorw	%di, %di
	movw	%di, packet_off
	rep stosl
	popw	%es
	ret

do_hole:
	movw	BDA_TICKS, %ax
	pushw	%ax
	movl	$HOLE_LBA, packet_lba
	movw	$DATA_SEG, packet_seg
	movw	$0, packet_off
	movw	$HOLE_OPS, %cx
1:	movw	$64, packet_count
	call	disk_read
	addl	$64, packet_lba
	loop	1b
	popw	%bx
	movw	$m_read, %si
	call	puts
	movzwl	BDA_TICKS, %eax
	subw	%bx, %ax
	jmp	put_line

/*
 * Memory above 1 MiB is reached with a segment whose limit is 4 GiB ("unreal mode"). The BIOS's interrupt handlers may
 * set it back to 64 KiB, so they wait while a MiB is done.
 */
big_segment:
	pushl	%eax
	cli
	lgdt	gdt_pointer
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	jmp	1f
1:	movw	$8, %bx
	movw	%bx, %fs
	andb	$0xfe, %al
	movl	%eax, %cr0
	jmp	2f
2:	xorw	%bx, %bx
	movw	%bx, %fs
	popl	%eax
	ret

do_touch:
	incl	touch_base
	movl	$TOUCH_START, %edi
	movw	$TOUCH_MIB, %dx
1:	call	big_segment
	movw	$256, %cx
2:	movl	%edi, %eax
	shrl	$12, %eax
	addl	touch_base, %eax
	movl	%eax, %fs:(%edi)
	addl	$4096, %edi
	loop	2b
	sti
	decw	%dx
	jnz	1b
	movw	$m_touched, %si
	call	puts
	movl	touch_base, %eax
	jmp	put_line

do_sum:
	xorl	%eax, %eax
	movl	$TOUCH_START, %edi
	movw	$TOUCH_MIB, %dx
1:	call	big_segment
	movw	$256, %cx
2:	addl	%fs:(%edi), %eax
	addl	$4096, %edi
	loop	2b
	sti
	decw	%dx
	jnz	1b
	movw	$m_sum, %si
	pushl	%eax
	call	puts
	popl	%eax
	jmp	put_line

do_drive:
	xorb	$1, drive
	movw	$m_drive, %si
	call	puts
	movzbl	drive, %eax
	jmp	put_line

do_poweroff:				/* PM1a control of our ACPI tables: sleep type 5; then QEMU's: type 0 */
	movw	$0x604, %dx
	movw	$0x3400, %ax
	outw	%ax, %dx
	movw	$0x2000, %ax
	outw	%ax, %dx
	ret
do_cf9:
	movw	$0xcf9, %dx
	movb	$2, %al
	outb	%al, %dx
	movb	$6, %al
	outb	%al, %dx
	jmp	dead
do_i8042:
	movb	$0xfe, %al
	outb	%al, $0x64
	jmp	dead
do_port92:
	inb	$0x92, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	orb	$1, %al
	outb	%al, $0x92
	jmp	dead
do_triple:				/* in protected mode: not every KVM cares for the table's limit in real mode */
	lidt	no_idt
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	int3
dead:	hlt
	jmp	dead

	.macro	cmd letter, to
	.byte	\letter
	.word	\to
	.endm
commands:
	cmd	's', set_mode
	cmd	'f', set_mode
	cmd	'k', set_mode
	cmd	'w', do_write
	cmd	'r', do_read
	cmd	'm', do_touch
	cmd	'v', do_sum
	cmd	'h', do_hole
	cmd	'd', do_drive
	cmd	'p', do_poweroff
	cmd	'c', do_cf9
	cmd	'i', do_i8042
	cmd	'9', do_port92
	cmd	'x', do_triple
	.byte	0

m_boot:	.asciz	"BOOT count="
m_wrote: .asciz	"WROTE "
m_note:	.asciz	"R note="
m_first: .asciz	" first="
m_last:	.asciz	" last="
m_boots: .asciz	" boots="
m_gen:	.asciz	" gen="
m_touched: .asciz "TOUCHED "
m_sum:	.asciz	"SUM "
m_read:	.asciz	"READ "
m_drive: .asciz	"DRIVE "
mode:	.byte	's'
	.balign	4
last_tick: .word 0, 0
ticks:	.long	0
floods:	.long	0
writes:	.long	0
generation: .long 0
touch_base: .long 0
	.balign	8
gdt:	.quad	0, 0x00cf92000000ffff	/* flat data */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
no_idt:	.word	0
	.long	0
	.org	512 * 9
