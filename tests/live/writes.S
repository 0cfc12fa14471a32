/* Write the eight bytes at D, and what lies behind them, in every way that a program has.

   MAIR, TCR, TTBR0, TTBR1, D, A, B and C are given with --defsym: D is where it lies, A and B are where the
   upper half maps it, C is a page that was not accessed yet, or 0. The labels w0, w1, … stand at the
   instructions that write; at w12 the CPU itself sets the access flag in the descriptor of C. */

        .arch   armv8.1-a
        .global _start
_start: adr     x0, vectors
        msr     vbar_el1, x0
        ldr     x2, =D
        mov     x0, #3 << 20
        msr     cpacr_el1, x0
        isb
        mov     x3, #0x703
w0:     str     x3, [x2]
        mov     x4, #0x1003
w1:     stp     x4, x3, [x2]
        mov     x20, #2000
1:      sub     x20, x20, #1
        cbnz    x20, 1b
        ldr     x0, =MAIR
        msr     mair_el1, x0
        ldr     x0, =TCR
        msr     tcr_el1, x0
        ldr     x0, =TTBR0
        msr     ttbr0_el1, x0
        ldr     x0, =TTBR1
        msr     ttbr1_el1, x0
        tlbi    vmalle1
        dsb     sy
        isb
        mrs     x0, sctlr_el1
        orr     x0, x0, #1
        msr     sctlr_el1, x0
        isb
        ldr     x10, =A
        ldr     x11, =B
        ldr     x5, [x10]
        mov     x6, #0x2003
w2:     str     x6, [x10]
        mov     x12, x11
w3:     str     x6, [x12], #8
        orr     x6, x6, #0x800
w4:     stlr    x6, [x11]
        mov     x7, x6
        mov     x8, #0x3003
w5:     cas     x7, x8, [x10]
        mov     x9, #0x400
w6:     ldset   x9, x7, [x11]
        mov     w7, #0x60
w7:     strb    w7, [x10, #6]
w8:     dc      zva, x10
        fmov    d0, x8
        mov     x13, #0
        mov     x14, x11
w9:     str     q0, [x14, x13, lsl #4]
        sub     x15, x10, #8
w10:    stp     xzr, x8, [x15, #8]!
w11:    str     x9, [x10, #4088]
        ldr     x0, =C
        cbz     x0, 2f
w12:    ldr     x0, [x0]
2:      nop
done:   wfi
        b       done
        .ltorg

        .org    0x800
vectors:
        .rept   16
        wfi
        b       . - 4
        .balign 0x80
        .endr
