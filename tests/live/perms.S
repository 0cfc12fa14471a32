/* Ask the CPU what may be done with each of a list of addresses, under several TCR_EL1 and SCTLR_EL1.

   MAIR, TTBR0, TTBR1, CONFIGS (pairs TCR, bits to set in SCTLR; a zero ends them), VAS (addresses; a zero
   ends them), COUNT (of them) and RESULTS (a byte for each address and configuration) are given with
   --defsym. Each address holds `ret`, and 8 bytes on `svc #0`. Bits of a result: 0 read at EL1, 1 write at
   EL1, 2 read at EL0, 3 write at EL0 (by AT and PAR_EL1.F), 4 executed at EL1, 5 executed at EL0,
   6 read at EL1 with PSTATE.PAN. */

        .arch   armv8.2-a
        .global _start

        .macro  ask operation, number
        at      \operation, x22
        isb
        mrs     x0, par_el1
        tbnz    x0, #0, 9f
        orr     x23, x23, #1 << \number
9:
        .endm

_start: ldr     x0, =MAIR
        msr     mair_el1, x0
        ldr     x0, =TTBR0
        msr     ttbr0_el1, x0
        ldr     x0, =TTBR1
        msr     ttbr1_el1, x0
        adr     x0, vectors
        msr     vbar_el1, x0
        mrs     x27, sctlr_el1
        ldr     x0, =1 << 23 | 1                /* SPAN, M */
        orr     x27, x27, x0
        ldr     x19, =CONFIGS
        ldr     x21, =RESULTS

config: ldp     x0, x1, [x19], #16
        cbz     x0, done
        orr     x1, x1, x27
        msr     tcr_el1, x0
        isb
        tlbi    vmalle1
        dsb     sy
        isb
        msr     sctlr_el1, x1
        isb
        tlbi    vmalle1
        dsb     sy
        isb
        b       ready
back:   ldr     x20, =VAS
va:     ldr     x22, [x20], #8
        cbz     x22, config
        mov     x23, #0
        ask     s1e1r, 0
        ask     s1e1w, 1
        ask     s1e0r, 2
        ask     s1e0w, 3
        msr     pan, #1
        at      s1e1rp, x22
        isb
        msr     pan, #0
        mrs     x0, par_el1
        tbnz    x0, #0, 1f
        orr     x23, x23, #1 << 6
1:      mov     x24, #0
        blr     x22
        cbnz    x24, 2f
        orr     x23, x23, #1 << 4
2:      add     x0, x22, #8
        msr     elr_el1, x0
        mov     x0, #0x3c0
        msr     spsr_el1, x0
        adr     x25, 3f
        eret
3:      cbz     x24, 4f
        orr     x23, x23, #1 << 5
4:      strb    w23, [x21], #1
        b       va
        .ltorg

        .org    0x400
done:   wfi
        b       done

        .org    0x500
bad:    b       bad

        .org    0x600
ready:  nop
        b       back

        .org    0x800
vectors:
        .org    0xa00                           /* EL1: an instruction abort goes back to the caller */
        mrs     x0, esr_el1
        lsr     x0, x0, #26
        cmp     x0, #0x21
        b.ne    bad
        mov     x24, #1
        msr     elr_el1, x30
        eret
        .org    0xc00                           /* EL0: svc, or an instruction abort */
        mrs     x0, esr_el1
        lsr     x0, x0, #26
        cmp     x0, #0x15
        cset    x24, eq
        b.eq    1f
        cmp     x0, #0x20
        b.ne    bad
1:      br      x25
        .org    0x1000
