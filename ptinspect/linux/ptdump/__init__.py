"""The kernel's own text of its page tables, /sys/kernel/debug/kernel_page_tables.

`segments`, `columns` and `markers` are what it is made of; `kernel_lines` writes it as the kernel does,
`kernel_text` reads and compares it.
"""
