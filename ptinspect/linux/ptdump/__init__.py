"""The kernel's own text of its page tables, /sys/kernel/debug/kernel_page_tables: read, and written alike."""
