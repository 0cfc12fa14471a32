/* Turn the MMU on with tables that are in memory already, and read through them.

   MAIR, TCR, TTBR0, TTBR1 and PROBES are given with --defsym. PROBES is a list of pairs: an address
   and what must be read there; it ends with a zero. x20 counts what was right. */

        .global _start
_start: ldr     x0, =MAIR
        msr     mair_el1, x0
        ldr     x0, =TCR
        msr     tcr_el1, x0
        ldr     x0, =TTBR0
        msr     ttbr0_el1, x0
        ldr     x0, =TTBR1
        msr     ttbr1_el1, x0
        adr     x0, vectors
        msr     vbar_el1, x0
        ldr     x1, =PROBES
        mov     x20, #0
        tlbi    vmalle1
        dsb     sy
        isb
        mrs     x0, sctlr_el1
        orr     x0, x0, #1
        msr     sctlr_el1, x0
        isb
1:      ldr     x2, [x1], #8
        cbz     x2, done
        ldr     x3, [x1], #8
        ldr     x4, [x2]
        cmp     x3, x4
        b.ne    bad
        add     x20, x20, #1
        b       1b
        .ltorg

        .org    0x400
done:   wfi
        b       done

        .org    0x500
bad:    b       bad

        .org    0x800
vectors:
        .rept   16
        b       bad
        .balign 0x80
        .endr
