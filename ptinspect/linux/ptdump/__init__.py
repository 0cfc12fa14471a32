"""The kernel's own text of its page tables, /sys/kernel/debug/kernel_page_tables.

`kernel_lines` writes it as the kernel does, with `markers`; `kernel_text` reads and compares it.
"""
