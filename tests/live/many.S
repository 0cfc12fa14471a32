/* A process with many areas: it maps each file that it is given, then 120 pages that do not merge. */

        .global _start
_start: ldr     x19, [sp]
        add     x20, sp, #16
1:      subs    x19, x19, #1
        b.eq    2f
        mov     x0, #-100                       /* openat(AT_FDCWD, name, O_RDONLY) */
        ldr     x1, [x20], #8
        mov     x2, #0
        mov     x8, #56
        svc     #0
        mov     x4, x0
        mov     x2, #1                          /* PROT_READ */
        mov     x3, #2                          /* MAP_PRIVATE */
        bl      map
        b       1b
2:      mov     x19, #120
3:      and     x2, x19, #1                     /* PROT_READ, every other with PROT_WRITE */
        lsl     x2, x2, #1
        orr     x2, x2, #1
        mov     x3, #0x22                       /* MAP_PRIVATE, MAP_ANONYMOUS */
        mov     x4, #-1
        bl      map
        subs    x19, x19, #1
        b.ne    3b
4:      mov     x0, #0                          /* ppoll(NULL, 0, NULL, NULL): for ever */
        mov     x1, #0
        mov     x2, #0
        mov     x3, #0
        mov     x8, #73
        svc     #0
        b       4b

map:    mov     x0, #0
        mov     x1, #4096
        mov     x5, #0
        mov     x8, #222
        svc     #0
        ldr     w1, [x0]
        ret
