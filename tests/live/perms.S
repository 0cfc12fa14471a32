/* Ask the CPU what may be done with each of a list of addresses, under several controls.

   LEVEL (1: EL1 and EL0; 2: EL2 alone), MAIR, TTBR0, TTBR1, CONFIGS (six numbers each: TCR, bits to set in
   SCTLR, TCR2, PIR, PIRE0, MAIR2; a TCR of zero ends them), VAS (addresses; a zero ends them) and RESULTS
   (two bytes for each address and configuration) are given with --defsym. TCR2, PIR, PIRE0 and MAIR2 are
   written where the CPU has FEAT_S1PIE (and FEAT_AIE). Each address holds `ret`, and 8 bytes on `svc #0`.
   Bits of a result: 0 read at LEVEL and 2 at EL0 (by AT and PAR_EL1.F), 1 written at LEVEL and 3 for EL0 (by a
   store: AT leaves nDirty alone), 4 executed at LEVEL, 5 executed at EL0, 6 read at EL1 with PSTATE.PAN; 15:8
   PAR_EL1.ATTR of a read at LEVEL. */

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

        .macro  attempt number, instruction:vararg
        mov     x24, #0
        adr     x30, 8f
        \instruction
8:      cbnz    x24, 9f
        orr     x23, x23, #1 << \number
9:
        .endm

        .macro  flush
        dsb     sy
        .if LEVEL == 2
        tlbi    alle2
        .else
        tlbi    vmalle1
        .endif
        dsb     sy
        isb
        .endm

        .if LEVEL == 2
        .macro  set register, value
        msr     \register\()_el2, \value
        .endm
        .macro  get value, register
        mrs     \value, \register\()_el2
        .endm
        .else
        .macro  set register, value
        msr     \register\()_el1, \value
        .endm
        .macro  get value, register
        mrs     \value, \register\()_el1
        .endm
        .endif

_start: ldr     x0, =MAIR
        set     mair, x0
        ldr     x0, =TTBR0
        set     ttbr0, x0
        .if LEVEL == 1
        ldr     x0, =TTBR1
        msr     ttbr1_el1, x0
        .else
        msr     hcr_el2, xzr
        .endif
        adr     x0, vectors
        set     vbar, x0
        get     x27, sctlr
        ldr     x0, =1 << 23 | 1                /* SPAN, M */
        orr     x27, x27, x0
        ldr     x19, =CONFIGS
        ldr     x21, =RESULTS
        mrs     x28, s3_0_c0_c7_3               /* ID_AA64MMFR3_EL1 */
        ubfx    x26, x28, #24, #4               /* AIE */
        ubfx    x28, x28, #8, #4                /* S1PIE */

config: ldp     x0, x1, [x19], #16
        ldp     x2, x3, [x19], #16
        ldp     x4, x5, [x19], #16
        cbz     x0, done
        orr     x1, x1, x27
        set     tcr, x0
        cbz     x28, 1f
        .if LEVEL == 2
        msr     s3_4_c10_c2_3, x3               /* PIR_EL2 */
        .else
        msr     s3_0_c10_c2_3, x3               /* PIR_EL1 */
        msr     s3_0_c10_c2_2, x4               /* PIRE0_EL1 */
        .endif
        cbz     x26, 2f
        .if LEVEL == 2
        msr     s3_4_c10_c1_1, x5               /* MAIR2_EL2 */
        .else
        msr     s3_0_c10_c2_1, x5               /* MAIR2_EL1 */
        .endif
2:      isb
        .if LEVEL == 2
        msr     s3_4_c2_c0_3, x2                /* TCR2_EL2 */
        .else
        msr     s3_0_c2_c0_3, x2                /* TCR2_EL1 */
        .endif
1:      isb
        flush
        set     sctlr, x1
        isb
        flush
        b       ready
back:   ldr     x20, =VAS
va:     ldr     x22, [x20], #8
        cbz     x22, config
        mov     x23, #0
        add     x25, x22, #2048
        .if LEVEL == 2
        ask     s1e2r, 0
        bl      type
        attempt 1, str wzr, [x25]
        .else
        ask     s1e1r, 0
        bl      type
        ask     s1e0r, 2
        attempt 1, str wzr, [x25]
        attempt 3, sttr wzr, [x25]
        msr     pan, #1
        at      s1e1rp, x22
        isb
        msr     pan, #0
        mrs     x0, par_el1
        tbnz    x0, #0, 1f
        orr     x23, x23, #1 << 6
        .endif
1:      mov     x24, #0
        blr     x22
        cbnz    x24, 2f
        orr     x23, x23, #1 << 4
2:
        .if LEVEL == 1
        add     x0, x22, #8
        msr     elr_el1, x0
        mov     x0, #0x3c0
        msr     spsr_el1, x0
        adr     x25, 3f
        eret
3:      cbz     x24, 4f
        orr     x23, x23, #1 << 5
        .endif
4:      strh    w23, [x21], #2
        b       va
type:   tbnz    x0, #0, 1f
        lsr     x0, x0, #56
        orr     x23, x23, x0, lsl #8
1:      ret
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
        .org    0xa00                           /* LEVEL: an instruction or data abort goes on at x30 */
        get     x0, esr
        ubfx    x0, x0, #26, #6
        orr     x0, x0, #4
        cmp     x0, #0x25
        b.ne    bad
        mov     x24, #1
        set     elr, x30
        eret
        .org    0xc00                           /* EL0: svc, or an instruction abort */
        get     x0, esr
        ubfx    x0, x0, #26, #6
        cmp     x0, #0x15
        cset    x24, eq
        b.eq    1f
        cmp     x0, #0x20
        b.ne    bad
1:      br      x25
        .org    0x1000
