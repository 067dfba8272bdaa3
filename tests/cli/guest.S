/* SPDX-License-Identifier: MIT */
/*
 * Firmware that is a guest: 64 KiB whose reset vector leads to a loop that reads commands from the serial port. Where
 * SeaBIOS takes seconds to its first line it takes milliseconds.
 *
 *   +  counts in memory    ?  prints the count        q  powers off
 *   r  resets              x  runs into what no KVM can emulate
 *   f  prints F without end, until another key comes
 *   anything else is printed again
 */
	.code16
	.set	SERIAL, 0x3f8
	.set	LINE_STATUS, 0x3fd
	.set	PM_CONTROL, 0x604
	.set	POWER_OFF, (5 << 10) | (1 << 13)
	.set	RESET, 0xcf9
	.set	COUNT, 0x600

	.globl	start
start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movb	$'0', COUNT
	movw	$0xf000, %ax
	movw	%ax, %es
	movw	$ready, %si
	movw	$SERIAL, %dx
1:	movb	%es:(%si), %al
	testb	%al, %al
	jz	wait
	outb	%al, %dx
	incw	%si
	jmp	1b
wait:
	movw	$LINE_STATUS, %dx
	inb	%dx, %al
	testb	$1, %al
	jnz	command
	movw	$2000, %cx
2:	loop	2b
	jmp	wait
command:
	movw	$SERIAL, %dx
	inb	%dx, %al
	cmpb	$'+', %al
	je	count
	cmpb	$'?', %al
	je	tell
	cmpb	$'q', %al
	je	power_off
	cmpb	$'r', %al
	je	reset
	cmpb	$'x', %al
	je	nowhere
	cmpb	$'f', %al
	je	flood
	outb	%al, %dx
	jmp	wait
count:
	incb	COUNT
	jmp	wait
tell:
	movb	COUNT, %al
	outb	%al, %dx
	jmp	wait
power_off:
	movw	$PM_CONTROL, %dx
	movw	$POWER_OFF, %ax
	outw	%ax, %dx
	jmp	wait
reset:
	movw	$RESET, %dx
	movb	$6, %al
	outb	%al, %dx
	jmp	wait
flood:
	movw	$LINE_STATUS, %dx
	inb	%dx, %al
	testb	$1, %al
	jnz	command
	testb	$0x20, %al
	jz	flood
	movw	$SERIAL, %dx
	movb	$'F', %al
	outb	%al, %dx
	jmp	flood
nowhere:
	ljmp	$0xa000, $0
ready:
	.asciz	"READY\r\n"

	/* no zeros: all of it is memory that a snapshot keeps */
	.org	0xfff0, 0xf4
	ljmp	$0xf000, $start
	.org	0xffff
	.byte	0
